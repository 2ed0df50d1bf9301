from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscaling.api.validation import InvalidSpecError, parse_spec
from modelscaling.cli.resource import model_scalings, read_documents
from modelscaling.cli.validate import judge
from modelscaling.configuration import RunConfiguration, WeightsFormat
from modelscaling.mesh import Mesh
from modelscaling.protocol import SOURCE_MOUNT
from modelscaling.resolve import resolve_configuration, resolve_plan
from modelscaling.shape import Lora
from tests.shared.spec import make_spec

EXAMPLES = Path(__file__).parents[2] / "examples"


def _configuration(**changes: Any) -> RunConfiguration:
    return resolve_configuration(parse_spec(make_spec(**changes)))


def test_steps_are_tokens_over_the_global_batch_rounded_up() -> None:
    assert _configuration(training__tokens=8 * 64 * 10 + 1).training.total_steps == 11


@pytest.mark.parametrize(
    ("growth", "tolerance"),
    [
        pytest.param({}, 0.05, id="what is preserved has a default"),
        pytest.param({"mode": "Stack"}, None, id="what jumps by nature has none"),
        pytest.param({"mode": "Stack", "tolerance": "0.5"}, 0.5, id="what is declared"),
        pytest.param({"tolerance": "0"}, 0.0, id="none at all"),
        pytest.param({"mode": "Forbid"}, None, id="what never grows"),
    ],
)
def test_the_tolerance_of_growth(growth: dict[str, str], tolerance: float | None) -> None:
    assert _configuration(model__growth=growth).growth_tolerance == tolerance


def test_a_byte_model_has_256_ids_unless_it_says_otherwise() -> None:
    assert _configuration().model.vocabulary_size == 256


def test_a_tokenizer_file_needs_a_vocabulary_size() -> None:
    with pytest.raises(InvalidSpecError, match=r"spec.model.vocabularySize: is required"):
        _configuration(data__tokenizer={"file": "/tokenizer.json"})


def test_a_vocabulary_below_the_bytes_is_refused() -> None:
    with pytest.raises(InvalidSpecError, match="100 is below 256"):
        _configuration(model__vocabularySize=100)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param(
            {"preset": "llama-3.2-1b"},
            {"layers": 16, "kv_heads": 8, "head_size": 64, "context_length": 8192},
            id="a preset alone",
        ),
        pytest.param(
            {"preset": "llama-3.2-1b", "layers": 4, "contextLength": 512},
            {"layers": 4, "kv_heads": 8, "head_size": 64, "context_length": 512},
            id="fields beside a preset replace its values",
        ),
        pytest.param(
            {"preset": "llama-3.2-1b", "hiddenSize": 1024, "heads": 8},
            {"kv_heads": 8, "heads": 8, "head_size": 128},
            id="another width has its own head size and kv heads",
        ),
        pytest.param(
            {"preset": "qwen2.5-0.5b", "layers": 2, "contextLength": 512},
            {"layers": 2, "qkv_bias": True, "rope_theta": 1e6, "context_length": 512},
            id="a preset brings what its family does differently",
        ),
        pytest.param(
            {"parameters": "20M", "contextLength": 512},
            {"layers": 7, "hidden_size": 512, "vocabulary_size": 256, "context_length": 512},
            id="a wish for a size",
        ),
        pytest.param(
            {"parameters": "20M", "vocabularySize": 32000, "tiedEmbeddings": False},
            {"hidden_size": 256, "vocabulary_size": 32000, "tied_embeddings": False},
            id="a wish for a size with two large tables",
        ),
    ],
)
def test_a_shape_is_the_preset_with_what_is_given(
    changes: dict[str, Any], expected: dict[str, int]
) -> None:
    shape = _configuration(model=changes).model

    assert {name: getattr(shape, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": "1M", "vocabularySize": 128256}, "no decoder with vocabularySize=128256"),
        ({"parameters": "2T"}, "parameters=2000000000000 is not between"),
        ({"parameters": "0.5"}, "'0.5' is not a whole number"),
    ],
)
def test_a_wish_that_cannot_be_met_says_why(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpecError, match=rf"^spec\.model\.parameters: {message}"):
        _configuration(model=changes)


def test_kv_heads_that_do_not_fit_a_preset_are_a_problem_of_the_model() -> None:
    with pytest.raises(InvalidSpecError, match=r"spec\.model: kvHeads=5 does not divide heads=32"):
        _configuration(model={"preset": "llama-3.2-1b", "kvHeads": 5})


def test_cosine_falls_over_all_steps_after_the_warm_up() -> None:
    optimizer = _configuration(training__tokens=8 * 64 * 100).optimizer

    assert (optimizer.warmup_steps, optimizer.decay_steps) == (20, 80)


def test_warm_up_is_no_longer_than_the_run() -> None:
    optimizer = _configuration(training__tokens=8 * 64 * 5).optimizer

    assert (optimizer.warmup_steps, optimizer.decay_steps) == (5, 0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"huggingFace": {"path": "/a"}}, (WeightsFormat.HUGGING_FACE, "/a")),
        ({"checkpoint": {"path": "/b"}}, (WeightsFormat.CHECKPOINT, "/b")),
        ({"modelScaling": {"name": "small"}}, (WeightsFormat.CHECKPOINT, SOURCE_MOUNT)),
    ],
)
def test_weights_to_begin_with_are_named_by_format_and_path(
    given: dict[str, Any], expected: tuple[WeightsFormat, str]
) -> None:
    volume: dict[str, Any] = {"emptyDir": {}}
    init_from = _configuration(model__initFrom=given, checkpoint__volume=volume).init_from

    assert init_from is not None
    assert (init_from.format, init_from.path) == expected


def test_weights_that_stay_are_those_of_the_model() -> None:
    assert _configuration(training__freeze=["layers.0.*"]).optimizer.freeze == ("layers.0.*",)
    with pytest.raises(
        InvalidSpecError, match=r"spec\.training\.freeze: 'layers\.2\.\*' matches no"
    ):
        _configuration(training__freeze=["layers.2.*"])


def test_learning_rate_factors_are_of_weights_that_are_trained() -> None:
    factors = [{"layerDecay": "0.9"}, {"weights": "layers.0.*", "factor": "0.5"}]

    optimizer = _configuration(training__learningRateFactors=factors).optimizer

    assert [
        (each.weights, each.factor, each.layer_decay) for each in (optimizer.learning_rate_factors)
    ] == [("*", 1.0, 0.9), ("layers.0.*", 0.5, 1.0)]
    with pytest.raises(
        InvalidSpecError,
        match=r"spec\.training\.learningRateFactors\[1\]\.weights: 'layers\.0\.\*' matches only "
        r"weights that stay as they are",
    ):
        _configuration(training__learningRateFactors=factors, training__freeze=["layers.0.*"])
    with pytest.raises(
        InvalidSpecError, match=r"learningRateFactors\[0\]\.weights: 'head' matches no"
    ):
        _configuration(training__learningRateFactors=[{"weights": "head", "factor": "2"}])


def test_adapters_are_a_part_of_the_shape_and_alone_are_trained() -> None:
    adapted: dict[str, Any] = {
        "model__lora": {"rank": 4, "targets": ["v_proj", "q_proj"]},
        "model__initFrom": {"checkpoint": {"path": "/a"}},
    }

    configuration = _configuration(**adapted, training__freeze=["layers.0.*"])

    assert configuration.model.lora == Lora(rank=4, alpha=16.0, targets=("q_proj", "v_proj"))
    assert RunConfiguration.model_validate_json(configuration.model_dump_json()) == configuration
    with pytest.raises(InvalidSpecError, match=r"'norm\.\*' matches only weights that model\.lora"):
        _configuration(**adapted, training__freeze=["norm.*"])
    with pytest.raises(InvalidSpecError, match=r"\[0\]\.weights: 'norm\.\*' matches only weights"):
        _configuration(
            **adapted, training__learningRateFactors=[{"weights": "norm.*", "factor": "2"}]
        )


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.name)
def test_an_example_is_a_run(file: Path) -> None:
    for document in model_scalings(str(file), read_documents(str(file))):
        assert judge(document).problems == ()


def test_the_configuration_survives_json() -> None:
    configuration = _configuration(data__tokenizer={"file": "/t.json"}, model__vocabularySize=300)

    assert RunConfiguration.model_validate_json(configuration.model_dump_json()) == configuration


def test_auto_is_data_parallel_over_all_processes() -> None:
    plan = resolve_plan(parse_spec(make_spec(replicas=2, processesPerReplica=2)))

    assert plan.mesh == Mesh(dataReplicate=4)


@pytest.mark.parametrize(
    ("parallelism", "replicas", "mesh"),
    [
        ({}, 2, Mesh(dataReplicate=2)),
        ({"strategy": "Custom", "dataReplicate": 1}, 2, Mesh(dataShard=2)),
        ({"strategy": "Custom", "pipeline": 2}, 2, Mesh(pipeline=2)),
    ],
)
def test_an_elastic_run_is_planned_for_the_pods_that_it_has(
    parallelism: dict[str, Any], replicas: int, mesh: Mesh
) -> None:
    spec = parse_spec(make_spec(replicas=4, parallelism=parallelism))

    assert resolve_plan(spec, replicas=replicas).mesh == mesh
    assert spec.replicas == 4


def test_a_declared_mesh_may_be_illegal_for_fewer_pods() -> None:
    axes = {"strategy": "Custom", "dataReplicate": 2, "dataShard": 2}
    spec = parse_spec(make_spec(replicas=4, parallelism=axes))

    with pytest.raises(InvalidSpecError, match="replicas=2"):
        resolve_plan(spec, replicas=2)


def test_a_batch_that_cannot_be_cut_names_the_nearest_sizes() -> None:
    with pytest.raises(InvalidSpecError) as caught:
        resolve_plan(parse_spec(make_spec(replicas=3)))

    assert str(caught.value) == (
        "spec.training.globalBatchSize: 8 is not divisible by the data-parallel size 3 "
        "(replicas=3 × processesPerReplica=1); change replicas × processesPerReplica to 2 or 4, "
        "or globalBatchSize to a multiple of 3"
    )


def test_a_micro_batch_larger_than_a_part_names_the_divisors() -> None:
    spec = parse_spec(
        make_spec(replicas=4, training__microBatchSize=4, parallelism__strategy="Custom")
    )

    with pytest.raises(InvalidSpecError, match=r"4 does not divide .* 2 samples; .*\[1, 2\]"):
        resolve_plan(spec)


@pytest.mark.parametrize(
    ("parallelism", "mesh"),
    [
        ({}, Mesh(dataReplicate=8)),
        ({"dataReplicate": 2}, Mesh(dataReplicate=2, dataShard=4)),
        ({"dataShard": 8}, Mesh(dataShard=8)),
        ({"dataShard": 2}, Mesh(dataReplicate=4, dataShard=2)),
        ({"dataReplicate": 1}, Mesh(dataShard=8)),
        ({"tensor": 2, "pipeline": 2}, Mesh(pipeline=2, dataReplicate=2, tensor=2)),
        ({"context": 2, "dataReplicate": 4, "dataShard": 1}, Mesh(dataReplicate=4, context=2)),
        (
            {"pipeline": 2, "stagesPerProcess": 2, "dataReplicate": 1},
            Mesh(pipeline=2, stagesPerProcess=2, dataShard=4),
        ),
    ],
    ids=[
        "copies take all where nothing is given",
        "shards take what copies leave",
        "shards of all",
        "copies take what shards leave",
        "one copy is sharded over all",
        "copies take what the model axes leave",
        "both data axes as given",
        "interleaved stages take no processes",
    ],
)
def test_a_declared_mesh_leaves_the_rest_to_a_data_axis(
    parallelism: dict[str, int], mesh: Mesh
) -> None:
    spec = make_spec(
        replicas=2,
        processesPerReplica=4,
        model__layers=4,
        training__globalBatchSize=32,
        parallelism={"strategy": "Custom", **parallelism},
    )

    plan = resolve_plan(parse_spec(spec))

    assert (plan.mesh, plan.rejected) == (mesh, ())
    assert plan.reason.startswith("declared; a process needs about ")


def test_a_declared_mesh_that_breaks_rules_is_refused_with_all_of_them() -> None:
    spec = make_spec(
        processesPerReplica=12, parallelism={"strategy": "Custom", "tensor": 3, "pipeline": 4}
    )

    with pytest.raises(InvalidSpecError) as caught:
        resolve_plan(parse_spec(spec))

    assert [problem.field for problem in caught.value.problems] == [
        *["spec.parallelism.tensor"] * 5,
        "spec.parallelism.pipeline",
    ]


@pytest.mark.parametrize("strategy", ["Auto", "Custom"])
def test_a_paused_run_has_no_memory_to_plan(strategy: str) -> None:
    plan = resolve_plan(parse_spec(make_spec(replicas=0, parallelism={"strategy": strategy})))

    assert (plan.mesh, plan.memory) == (Mesh(), None)
    assert plan.reason == "replicas is 0: nothing is laid out"


_LIMITED = {
    "spec": {"containers": [{"name": "trainer", "resources": {"limits": {"memory": "8Mi"}}}]}
}


@pytest.mark.parametrize(
    ("changes", "field", "limit"),
    [
        (
            {"template": _LIMITED},
            "spec.template (container trainer, resources.limits.memory)",
            "4Mi",
        ),
        ({"parallelism": {"deviceMemory": "2Mi"}}, "spec.parallelism.deviceMemory", "2Mi"),
        (
            {"template": _LIMITED, "parallelism": {"deviceMemory": "2Mi"}},
            "spec.parallelism.deviceMemory",
            "2Mi",
        ),
    ],
    ids=[
        "a pod's limit is shared by its processes",
        "the field",
        "the field goes before the template",
    ],
)
def test_what_fits_no_process_is_refused_at_the_field_that_limits_it(
    changes: dict[str, Any], field: str, limit: str
) -> None:
    spec = make_spec(processesPerReplica=2, model__vocabularySize=4096, **changes)

    with pytest.raises(InvalidSpecError) as caught:
        resolve_plan(parse_spec(spec))

    (problem,) = caught.value.problems
    assert problem.field == field
    assert problem.message.startswith(f"{limit} a process is less than the ")


def test_a_devices_memory_is_not_that_of_its_pod() -> None:
    limits = {"memory": "8Mi", "nvidia.com/gpu": 1}
    template = {"spec": {"containers": [{"name": "trainer", "resources": {"limits": limits}}]}}

    plan = resolve_plan(parse_spec(make_spec(model__vocabularySize=4096, template=template)))

    assert plan.memory is not None
    assert plan.memory.total > 8 * 2**20


@settings(deadline=None)
@given(st.integers(1, 64), st.integers(1, 4), st.integers(1, 512))
def test_a_plan_uses_every_process_and_cuts_the_batch_evenly(
    replicas: int, processes: int, batch: int
) -> None:
    spec = parse_spec(
        make_spec(replicas=replicas, processesPerReplica=processes, training__globalBatchSize=batch)
    )
    try:
        mesh = resolve_plan(spec).mesh
    except InvalidSpecError:
        assert batch % (replicas * processes)
        return

    assert mesh.size == replicas * processes
    assert batch % mesh.data_parallel == 0

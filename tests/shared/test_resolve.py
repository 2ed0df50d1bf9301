from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelscaling.api.validation import InvalidSpecError, parse_spec
from modelscaling.configuration import RunConfiguration
from modelscaling.mesh import Mesh
from modelscaling.resolve import resolve_configuration, resolve_plan
from tests.shared.spec import make_spec


def _configuration(**changes: Any) -> RunConfiguration:
    return resolve_configuration(parse_spec(make_spec(**changes)))


def test_steps_are_tokens_over_the_global_batch_rounded_up() -> None:
    assert _configuration(training__tokens=8 * 64 * 10 + 1).training.total_steps == 11


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
    ],
)
def test_a_shape_is_the_preset_with_what_is_given(
    changes: dict[str, Any], expected: dict[str, int]
) -> None:
    shape = _configuration(model=changes).model

    assert {name: getattr(shape, name) for name in expected} == expected


def test_kv_heads_that_do_not_fit_a_preset_are_a_problem_of_the_model() -> None:
    with pytest.raises(InvalidSpecError, match=r"spec\.model: kvHeads=5 does not divide heads=32"):
        _configuration(model={"preset": "llama-3.2-1b", "kvHeads": 5})


def test_cosine_falls_over_all_steps_after_the_warm_up() -> None:
    optimizer = _configuration(training__tokens=8 * 64 * 100).optimizer

    assert (optimizer.warmup_steps, optimizer.decay_steps) == (20, 80)


def test_warm_up_is_no_longer_than_the_run() -> None:
    optimizer = _configuration(training__tokens=8 * 64 * 5).optimizer

    assert (optimizer.warmup_steps, optimizer.decay_steps) == (5, 0)


def test_the_configuration_survives_json() -> None:
    configuration = _configuration(data__tokenizer={"file": "/t.json"}, model__vocabularySize=300)

    assert RunConfiguration.model_validate_json(configuration.model_dump_json()) == configuration


def test_auto_is_data_parallel_over_all_processes() -> None:
    plan = resolve_plan(parse_spec(make_spec(replicas=2, processesPerReplica=2)))

    assert plan.mesh == Mesh(dataReplicate=4)


def test_a_batch_that_cannot_be_cut_names_the_nearest_sizes() -> None:
    with pytest.raises(InvalidSpecError) as caught:
        resolve_plan(parse_spec(make_spec(replicas=3)))

    assert str(caught.value) == (
        "spec.training.globalBatchSize: 8 is not divisible by the data-parallel size 3 "
        "(replicas=3 × processesPerReplica=1); change replicas × processesPerReplica to 2 or 4, "
        "or globalBatchSize to a multiple of 3"
    )


def test_a_micro_batch_larger_than_a_part_names_the_divisors() -> None:
    spec = parse_spec(make_spec(replicas=4, training__microBatchSize=4))

    with pytest.raises(InvalidSpecError, match=r"4 does not divide .* 2 samples; .*\[1, 2\]"):
        resolve_plan(spec)


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

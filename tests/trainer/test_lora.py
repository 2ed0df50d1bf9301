"""Adapters that are trained beside weights that stay as they are, in real processes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from modelscaling.layout import is_adapter, layout, weights
from modelscaling.mesh import Mesh
from modelscaling_trainer.checkpoint import catalog
from modelscaling_trainer.checkpoint.weights import CheckpointWeights
from modelscaling_trainer.hugging_face.writing import write_directory
from modelscaling_trainer.merged_weights import MergedWeights
from modelscaling_trainer.model.decoder import Decoder
from modelscaling_trainer.shard import Shard
from tests.trainer.exactness import assert_trained_as_alone, train_on
from tests.trainer.families import draw, make_transformers_model
from tests.trainer.runs import make_run, write_text
from tests.trainer.workers import results, start, train_together

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from modelscaling.configuration import RunConfiguration
    from modelscaling_trainer.checkpoint.catalog import Checkpoint
    from tests.trainer.workers import Result

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

STEPS = 5
AGREEMENT = 2e-5
"""How far losses may lie apart, nats; float32, 3e-3, 5 steps."""
SAME_LOGITS = 1e-4
LEARNED = 0.05
"""By how much the loss of the last step is lower at least, nats."""
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EVERY_STEP = {"every_steps": 1, "keep": STEPS}
MESHES = [
    pytest.param(Mesh(dataReplicate=2), id="dp2"),
    pytest.param(Mesh(dataReplicate=2, dataShard=2), id="hsdp2x2"),
    pytest.param(Mesh(tensor=4), id="tp4 with 2 key and value heads"),
    pytest.param(Mesh(pipeline=2, stagesPerProcess=2), id="pp2 interleaved"),
    pytest.param(Mesh(context=2), id="cp2"),
    pytest.param(Mesh(dataShard=2, tensor=2), id="fsdp2 x tp2"),
    pytest.param(Mesh(tensor=2, pipeline=2), id="tp2 x pp2"),
    pytest.param(Mesh(dataShard=2, pipeline=2), id="fsdp2 x pp2"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a text and the model that runs begin with, which loses much."""
    directory = tmp_path_factory.mktemp("base")
    data = write_text(directory / "data")
    model = make_transformers_model(make_run(data, model__layers=4).model)
    draw(model)
    model.save_pretrained(directory / "model")
    return directory


def _run(base: Path, **changes: Any) -> RunConfiguration:
    return make_run(
        base / "data" / "corpus.txt",
        init_from={"format": "HuggingFace", "path": str(base / "model")},
        model__layers=4,
        model__lora={"rank": 3, "alpha": 6.0, "targets": ALL},
        optimizer__learning_rate=3e-3,
        optimizer__schedule="WarmupStableDecay",
        optimizer__warmup_steps=1,
        optimizer__decay_steps=0,
        **{"training__total_steps": STEPS, "checkpoint": EVERY_STEP, **changes},
    )


def _found(directory: Path, step: int) -> Checkpoint:
    found = catalog.find(directory, step)
    assert found is not None
    return found


def _tensors(run: RunConfiguration, directory: Path, step: int) -> dict[str, Tensor]:
    pieces = layout(run.model, Mesh(), 0)
    shards = {
        name: Shard(torch.empty(size), pieces[name]) for name, size in weights(run.model).items()
    }
    _found(directory, step).load({f"model.{name}": shard for name, shard in shards.items()})
    return {name: shard.tensor for name, shard in shards.items()}


@pytest.fixture(scope="module")
def alone(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    scratch = tmp_path_factory.mktemp("alone")
    [result] = train_on(Mesh(), _run(base), scratch, checkpoint_directory=scratch / "run")
    return scratch / "run", result


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_trains_adapters_as_one_process_does(
    mesh: Mesh, alone: tuple[Path, Result], base: Path, tmp_path: Path
) -> None:
    directory, expected = alone
    together = train_on(mesh, _run(base), tmp_path, checkpoint_directory=tmp_path / "run")

    assert_trained_as_alone(together, expected, mesh, steps=STEPS, loss_within=AGREEMENT)
    run = _run(base)
    ours, theirs = (_tensors(run, place, STEPS) for place in (tmp_path / "run", directory))
    for name, tensor in ours.items():
        if is_adapter(name):
            assert torch.allclose(tensor, theirs[name], rtol=0, atol=1e-4), name
        else:
            assert torch.equal(tensor, theirs[name]), name


def test_only_adapters_move_and_the_first_loss_is_that_of_the_weights_begun_with(
    alone: tuple[Path, Result], base: Path, tmp_path: Path
) -> None:
    directory, result = alone
    run = _run(base)
    plain = run.model_copy(update={"model": replace(run.model, lora=None)})
    [whole] = train_on(Mesh(), plain, tmp_path, stop_at_step=1)
    first, last = (_tensors(run, directory, step) for step in (1, STEPS))

    assert whole.losses[0] == result.losses[0]
    assert result.losses[0] - result.losses[-1] > LEARNED
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert moved == {name for name in first if is_adapter(name)}


def test_moments_are_kept_for_adapters_only(alone: tuple[Path, Result], base: Path) -> None:
    kinds = [name.split(".", 1) for name in _found(alone[0], STEPS).tensors]

    assert {name for kind, name in kinds if kind == "model"} == weights(_run(base).model).keys()
    for moment in ("exp_avg", "exp_avg_sq"):
        kept = {name for kind, name in kinds if kind == moment}
        assert kept == {name for name in weights(_run(base).model) if is_adapter(name)}


@torch.no_grad()
def test_an_export_computes_with_the_adapters(
    alone: tuple[Path, Result], base: Path, tmp_path: Path
) -> None:
    directory, _ = alone
    shape = _run(base).model
    merged = MergedWeights(CheckpointWeights(_found(directory, STEPS)))
    write_directory(merged, tmp_path / "exported", companions={})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    decoder, begun_with = (
        Decoder(of, compute_dtype=torch.float32) for of in (shape, replace(shape, lora=None))
    )
    trained = _tensors(_run(base), directory, STEPS)
    for name, parameter in [*decoder.weights().items(), *begun_with.weights().items()]:
        parameter.copy_(trained[name])
    ids = torch.arange(2 * shape.context_length).view(2, -1)

    logits = model(ids).logits

    assert (logits - decoder(ids)).abs().max() < SAME_LOGITS
    assert (logits - begun_with(ids)).abs().max() > 100 * SAME_LOGITS


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(Mesh(pipeline=2), Mesh(dataShard=2), id="pp2, then fsdp2"),
        pytest.param(Mesh(tensor=2), Mesh(), id="tp2, then one process while the other leaves"),
    ],
)
def test_adapters_move_in_memory_to_another_mesh(
    before: Mesh, after: Mesh, alone: tuple[Path, Result], base: Path, tmp_path: Path
) -> None:
    _, expected = alone
    runs = [_run(base, checkpoint=None, training__total_steps=steps) for steps in (2, STEPS)]
    workers = start(before.size, runs[0], scratch=tmp_path)
    try:
        train_together(workers, mesh=before)
        results(workers)
        for worker in workers:
            worker.reconfigure(runs[1])
        train_together(workers, mesh=after, generation=2)
        [first, *others] = results(workers)
    finally:
        for worker in workers:
            worker.kill()

    assert first.error is None, first.message
    assert [progress.step for progress in first.progress] == [*range(3, STEPS + 1)]
    assert expected.losses[2:] == pytest.approx(first.losses, abs=AGREEMENT)
    assert [other.error for other in others] == [None]

"""Weights that stay as they are, in real processes."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import torch

from modelscaling.freezing import is_frozen
from modelscaling.layout import layout, weights
from modelscaling.mesh import Mesh
from modelscaling_trainer.checkpoint import catalog
from modelscaling_trainer.shard import Shard
from tests.trainer.runs import make_run, write_text
from tests.trainer.workers import Result, results, start, train_together

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from modelscaling.configuration import RunConfiguration

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

STEPS = 4
AGREEMENT = 1e-5
"""How far losses may lie apart, nats; float32, 3e-4, 4 steps."""
FIRST_HALF = ("embed_tokens.*", "layers.[01].*")
"""All that the first of two pipeline stages holds."""


def _run(data: Path, *freeze: str, **changes: Any) -> RunConfiguration:
    changes = {"model__layers": 4, "model__tied_embeddings": False, **changes}
    return make_run(
        data,
        optimizer__freeze=freeze,
        optimizer__weight_decay=0.5,
        checkpoint={"every_steps": 1, "keep": STEPS},
        **changes,
    )


def _train(run: RunConfiguration, mesh: Mesh, scratch: Path) -> list[Result]:
    workers = start(
        mesh.size,
        run,
        scratch=scratch,
        stop_at_step=STEPS,
        checkpoint_directory=scratch / "run",
    )
    try:
        train_together(workers, mesh=mesh)
        return results(workers)
    finally:
        for worker in workers:
            worker.kill()


def _weights(run: RunConfiguration, directory: Path, step: int) -> dict[str, Tensor]:
    found = catalog.find(directory, step)
    assert found is not None
    pieces = layout(run.model, Mesh(), 0)
    shards = {
        name: Shard(torch.empty(size), pieces[name]) for name, size in weights(run.model).items()
    }
    found.load({f"model.{name}": shard for name, shard in shards.items()})
    return {name: shard.tensor for name, shard in shards.items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Result]]:
    """A run in one process, by what is frozen."""

    @cache
    def train(*freeze: str) -> tuple[Path, Result]:
        scratch = tmp_path_factory.mktemp("alone")
        [result] = _train(_run(write_text(scratch / "data"), *freeze), Mesh(), scratch)
        return scratch, result

    return train


def test_frozen_weights_stay_bit_by_bit_and_the_others_move(
    alone: Callable[..., tuple[Path, Result]],
) -> None:
    scratch, result = alone(*FIRST_HALF)
    run = _run(scratch / "data" / "corpus.txt", *FIRST_HALF)
    directory = scratch / "run"

    first, last = (_weights(run, directory, step) for step in (1, STEPS))

    assert result.outcome == "Complete"
    unmoved = {name for name in first if torch.equal(first[name], last[name])}
    assert unmoved == {name for name in first if is_frozen(name, FIRST_HALF)}
    assert 0 < len(unmoved) < len(first)


def test_frozen_weights_have_no_part_in_the_gradients_norm(
    alone: Callable[..., tuple[Path, Result]],
) -> None:
    _, whole = alone()
    _, half = alone(*FIRST_HALF)

    assert whole.losses[0] == half.losses[0]
    assert (half.gradient_norms[0] or 0.0) < 0.99 * (whole.gradient_norms[0] or 0.0)


@pytest.mark.parametrize("mesh", [Mesh(pipeline=2), Mesh(dataShard=2, tensor=2)], ids=str)
def test_a_mesh_trains_what_is_not_frozen_as_one_process_does(
    mesh: Mesh, alone: Callable[..., tuple[Path, Result]], tmp_path: Path
) -> None:
    _, expected = alone(*FIRST_HALF)

    ranks = _train(_run(write_text(tmp_path / "data"), *FIRST_HALF), mesh, tmp_path)

    assert [(rank.outcome, rank.message) for rank in ranks] == [("Complete", "")] * mesh.size
    for rank in ranks:
        assert expected.losses == pytest.approx(rank.losses, abs=AGREEMENT)
        assert expected.gradient_norms == pytest.approx(rank.gradient_norms, rel=1e-4)

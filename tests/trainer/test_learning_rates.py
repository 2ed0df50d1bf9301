"""Learning rates that differ by layer, in real processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from modelscaling.mesh import Mesh
from tests.trainer.exactness import assert_trained_as_alone
from tests.trainer.runs import make_run, write_text
from tests.trainer.workers import results, start, train_together

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from modelscaling.configuration import RunConfiguration
    from tests.trainer.workers import Result

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

CHANGED_AT, STEPS = 3, 6
AGREEMENT = 2e-5
"""How far losses may lie apart, nats; float32, 1e-3, 6 steps."""
DIFFERENCE = 1e-2
"""How far those of other rates lie apart at least."""
DECAY = [{"weights": "*", "factor": 1.0, "layer_decay": 0.3}]
FASTER_HEADS = [*DECAY, {"weights": "*self_attn*", "factor": 5.0, "layer_decay": 1.0}]


def _run(text: Path, factors: list[dict[str, Any]], steps: int) -> RunConfiguration:
    return make_run(
        text,
        model__layers=4,
        training__total_steps=steps,
        optimizer__learning_rate=1e-3,
        optimizer__schedule="WarmupStableDecay",
        optimizer__warmup_steps=1,
        optimizer__decay_steps=0,
        optimizer__learning_rate_factors=factors,
    )


def _train(text: Path, scratch: Path, meshes: Sequence[Mesh], *, changes: bool) -> list[Result]:
    """Train with DECAY on the first mesh, then on the second, with FASTER_HEADS if it `changes`."""
    before, after = meshes
    workers = start(before.size, _run(text, DECAY, CHANGED_AT), scratch=scratch)
    try:
        train_together(workers, mesh=before)
        first = results(workers)
        factors = FASTER_HEADS if changes else DECAY
        for worker in workers:
            worker.reconfigure(_run(text, factors, STEPS))
        train_together(workers, mesh=after, generation=2)
        return first + results(workers)
    finally:
        for worker in workers:
            worker.kill()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(text: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    return _train(text, tmp_path_factory.mktemp("alone"), (Mesh(), Mesh()), changes=True)


def test_rates_are_other_ones_and_change_while_the_run_trains(
    alone: list[Result], text: Path, tmp_path: Path
) -> None:
    decayed, changed = alone
    [*_, unchanged] = _train(text, tmp_path, (Mesh(), Mesh()), changes=False)
    workers = start(1, _run(text, [], CHANGED_AT), scratch=tmp_path)
    train_together(workers)
    [plain] = results(workers)
    workers[0].kill()

    assert plain.losses[0] == decayed.losses[0]
    assert decayed.losses[-1] - plain.losses[-1] > DIFFERENCE
    assert unchanged.losses[0] == changed.losses[0]
    assert unchanged.losses[-1] - changed.losses[-1] > DIFFERENCE


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(Mesh(pipeline=2), Mesh(dataShard=2), id="pp2, then fsdp2"),
        pytest.param(Mesh(tensor=2), Mesh(dataReplicate=2), id="tp2, then dp2"),
    ],
)
def test_a_mesh_trains_at_the_rates_of_one_process(
    before: Mesh, after: Mesh, alone: list[Result], text: Path, tmp_path: Path
) -> None:
    together = _train(text, tmp_path, (before, after), changes=True)

    decayed, changed = alone
    within = {"loss_within": AGREEMENT}
    assert_trained_as_alone(together[:2], decayed, before, steps=CHANGED_AT, **within)
    assert_trained_as_alone(together[2:], changed, after, steps=STEPS - CHANGED_AT, **within)

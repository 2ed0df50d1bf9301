"""Processes that are lost with the only copy of their shards: the others go on from snapshots,
without a checkpoint.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from modelscaling.mesh import Mesh
from tests.trainer.runs import make_run, write_text
from tests.trainer.workers import results, train_together

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.trainer.workers import Worker

    Start = Callable[..., list[Worker]]

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

_log = logging.getLogger(__name__)

AGREEMENT = 1e-5
"""How far losses may lie apart, nats; float32, 3e-4, 30 steps."""
STEPS = 30


@pytest.fixture
def start_some(start_workers: Callable[..., list[Worker]], tmp_path: Path) -> Start:
    """Start workers of one run."""
    text = write_text(tmp_path / "data")
    run = make_run(text, model__layers=4, training__total_steps=STEPS)
    return lambda count, **options: start_workers(count, run, **options)


@pytest.mark.parametrize(
    ("mesh", "pod_size", "lost"),
    [
        pytest.param(Mesh(dataShard=4), 1, {0}, id="the first of fsdp4"),
        pytest.param(Mesh(tensor=2, pipeline=2), 1, {1}, id="one of the first stage of tp2 x pp2"),
        pytest.param(Mesh(tensor=2, pipeline=2), 1, {2}, id="one of the last stage of tp2 x pp2"),
        pytest.param(Mesh(pipeline=4), 1, {3}, id="the last stage of pp4"),
        pytest.param(Mesh(dataShard=4), 2, {2, 3}, id="a pod with two of fsdp4"),
    ],
)
def test_a_lost_shard_comes_back_from_its_snapshot(
    mesh: Mesh, pod_size: int, lost: set[int], start_some: Start
) -> None:
    alone = start_some(1)
    train_together(alone)
    [undisturbed] = results(alone)

    # Who has told step 9 has the others' word that step 8 was done.
    ends = [9 if rank in lost else None for rank in range(mesh.size)]
    workers = [worker for end in ends for worker in start_some(1, dies_after_step=end)]
    train_together(workers, mesh=mesh, pod_size=pod_size)
    survivors = [worker for rank, worker in enumerate(workers) if rank not in lost]
    before = results(survivors)
    for rank in lost:
        workers[rank].kill()  # where another of its pod has died before it could
        [workers[rank]] = start_some(1)
    train_together(workers, mesh=mesh, attempt=2, pod_size=pod_size)
    after = results(workers)

    assert [result.error for result in before] == ["GroupLostError"] * len(survivors)
    assert [result.outcome for result in after] == ["Complete"] * mesh.size
    resumption = after[0].progress[0].resumption
    assert resumption is not None
    assert resumption.source == "Snapshot"
    assert resumption.furthest_step >= 8
    assert 0 < resumption.step <= resumption.furthest_step
    _log.info("%s: %d steps again", mesh, resumption.furthest_step - resumption.step)
    assert after[0].progress[0].step == resumption.step + 1
    assert undisturbed.losses[resumption.step :] == pytest.approx(after[0].losses, abs=AGREEMENT)
    assert undisturbed.digests[resumption.step :] == after[0].digests


def test_survivors_go_on_smaller_from_snapshots_and_lose_another(start_some: Start) -> None:
    alone = start_some(1)
    train_together(alone)
    [undisturbed] = results(alone)

    ends = [None, 6, 12, None]
    workers = [worker for end in ends for worker in start_some(1, dies_after_step=end)]
    train_together(workers, mesh=Mesh(dataShard=4))
    first = [workers[0], workers[2], workers[3]]
    before = results(first)
    train_together(first, mesh=Mesh(dataShard=3), generation=2)
    second = [workers[0], workers[3]]
    before += results(second)
    train_together(second, mesh=Mesh(tensor=2), generation=3)
    after = results(second)

    assert [result.error for result in before] == ["GroupLostError"] * 5
    resumption = after[0].progress[0].resumption
    assert resumption is not None
    assert resumption.source == "Snapshot"
    assert undisturbed.losses[resumption.step :] == pytest.approx(after[0].losses, abs=AGREEMENT)
    assert undisturbed.digests[-1] == after[0].digests[-1]

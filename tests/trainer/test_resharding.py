"""A run goes on from the same step on another mesh: from memory, and from a checkpoint."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import pytest

from modelscaling.mesh import Mesh
from tests.trainer.runs import make_run
from tests.trainer.workers import Result, Worker, results, train_together

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelscaling.configuration import RunConfiguration
    from modelscaling.protocol import Resumption

    Start = Callable[..., list[Worker]]

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

_log = logging.getLogger(__name__)

AGREEMENT = 1e-5
"""How far losses may lie apart, nats; float32, 3e-4, 30 steps."""

CHANGES = [
    pytest.param(Mesh(dataShard=4), Mesh(tensor=2, pipeline=2), id="fsdp4 to tp2 x pp2"),
    pytest.param(Mesh(tensor=2), Mesh(dataShard=3), id="tp2 to fsdp3, with a newcomer"),
    pytest.param(
        Mesh(pipeline=2), Mesh(pipeline=2, dataReplicate=2), id="pp2 to dp2 x pp2, with newcomers"
    ),
    pytest.param(
        Mesh(dataReplicate=2, dataShard=2), Mesh(dataShard=2, context=2), id="hsdp2x2 to fsdp2xcp2"
    ),
    pytest.param(Mesh(dataShard=4), Mesh(dataShard=2), id="fsdp4 to fsdp2, and two leave"),
    pytest.param(Mesh(pipeline=3), Mesh(tensor=2), id="pp3 to tp2, and a stage leaves"),
    pytest.param(Mesh(dataReplicate=3), Mesh(), id="dp3 to a single process, and two leave"),
    pytest.param(Mesh(tensor=2), Mesh(tensor=2), id="tp2, and the ranks change places"),
    pytest.param(
        Mesh(dataReplicate=2, tensor=2),
        Mesh(dataReplicate=2, tensor=2),
        id="dp2 x tp2, and the ranks change places",
    ),
]


def _run(text: Path, **changes: Any) -> RunConfiguration:
    return make_run(text, **{"model__layers": 4, "training__total_steps": 30} | changes)


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_a_change_of_mesh_loses_no_step(
    before: Mesh, after: Mesh, text: Path, start_workers: Start
) -> None:
    run = _run(text)
    alone = start_workers(1, run)
    train_together(alone)
    [undisturbed] = results(alone)

    workers = start_workers(max(before.size, after.size), run)
    workers[before.size - 1].ask("Reform", after_step=10)
    began = time.time()
    train_together(workers[: before.size], mesh=before)
    first = results(workers[: before.size])
    between = time.time()
    # Newcomers come first, and those that were first leave, so that the state has to move to other
    # ranks too.
    train_together(workers[::-1], mesh=after, generation=2)
    second = results(workers[::-1])
    ended = time.time()

    leavers = before.size - after.size
    assert [result.outcome for result in first] == ["Stopped"] * before.size
    assert [result.outcome for result in second] == ["Complete"] * after.size + [
        "Released"
    ] * leavers
    assert [result.progress for result in second[after.size :]] == [[]] * leavers
    resumption = _check_ledger(first[0], second[0])
    assert resumption.stopped_time is not None
    assert began < resumption.stopped_time <= between <= resumption.resumed_time < ended
    downtime = resumption.resumed_time - resumption.stopped_time
    _log.info("%s to %s stopped training for %.3f s", before, after, downtime)
    assert (first[0].progress[-1].step, second[0].progress[0].step) == (11, 12)
    assert undisturbed.losses == pytest.approx(first[0].losses + second[0].losses, abs=AGREEMENT)
    assert undisturbed.digests == first[0].digests + second[0].digests


def test_who_dies_after_it_has_handed_over_takes_nothing_with_it(
    text: Path, start_workers: Start
) -> None:
    run = _run(text)
    alone = start_workers(1, run)
    train_together(alone)
    [undisturbed] = results(alone)

    stayers = start_workers(2, run)
    workers = [*stayers, *start_workers(1, run, dies_when_it_has_left=True)]
    stayers[0].ask("Reform", after_step=5)
    train_together(workers, mesh=Mesh(dataShard=3))
    first = results(workers)
    train_together(workers, mesh=Mesh(dataShard=2), generation=2)
    broken = results(stayers)
    train_together(stayers, mesh=Mesh(dataShard=2), generation=2, attempt=2)
    second = results(stayers)

    assert [result.outcome for result in first] == ["Stopped"] * 3
    assert [result.error for result in broken] == ["GroupLostError"] * 2
    assert [result.outcome for result in second] == ["Complete"] * 2
    resumption = second[0].progress[0].resumption
    assert resumption is not None
    # Neither has known that the other had all it needed; both had, beside what they had before.
    assert (resumption.source, resumption.attempt) == ("Memory", 2)
    assert resumption.step == resumption.furthest_step == first[0].progress[-1].step
    assert undisturbed.digests == first[0].digests + second[0].digests
    assert undisturbed.losses == pytest.approx(first[0].losses + second[0].losses, abs=AGREEMENT)


def _check_ledger(first: Result, second: Result) -> Resumption:
    """Hold what a group says of the change that it began with against what happened; return it."""
    [resumption] = {progress.resumption for progress in second.progress}
    assert resumption is not None
    step = first.progress[-1].step
    assert (resumption.source, resumption.step, resumption.furthest_step) == ("Memory", step, step)
    assert resumption.generation == 2
    assert (resumption.loss_before, resumption.loss_after) == (first.losses[-1], second.losses[0])
    [beginning] = {progress.resumption for progress in first.progress}
    assert beginning is not None
    assert (beginning.source, beginning.step, beginning.generation) == ("Initial", 0, 1)
    return resumption


@pytest.mark.parametrize(
    "after",
    [
        pytest.param(Mesh(dataShard=2, tensor=2), id="fsdp2 x tp2"),
        pytest.param(Mesh(tensor=2), id="tp2"),
        pytest.param(Mesh(pipeline=2), id="pp2"),
        pytest.param(Mesh(), id="a single process"),
        pytest.param(Mesh(dataShard=3), id="fsdp3"),
    ],
)
def test_a_checkpoint_of_dp4_goes_on_on_any_mesh(
    after: Mesh, text: Path, tmp_path: Path, start_workers: Start
) -> None:
    run = _run(text, checkpoint={"every_steps": 1000, "keep": 2})
    alone = start_workers(1, run)
    train_together(alone)
    [undisturbed] = results(alone)

    directory = tmp_path / "run"
    workers = start_workers(4, run, checkpoint_directory=directory, stop_at_step=10)
    train_together(workers, mesh=Mesh(dataReplicate=4))
    results(workers)
    workers = start_workers(after.size, run, checkpoint_directory=directory)
    train_together(workers, mesh=after)
    resumed = results(workers)

    assert [result.outcome for result in resumed] == ["Complete"] * after.size
    assert resumed[0].progress[0].step == 11
    assert undisturbed.losses[10:] == pytest.approx(resumed[0].losses, abs=AGREEMENT)
    assert undisturbed.digests[10:] == resumed[0].digests


def test_shards_that_are_lost_with_their_snapshots_come_back_from_the_last_checkpoint(
    text: Path, tmp_path: Path, start_workers: Start
) -> None:
    run = _run(text, training__total_steps=100_000, checkpoint={"every_steps": 1000, "keep": 2})
    directory = tmp_path / "run"
    workers = start_workers(4, run, checkpoint_directory=directory)
    workers[0].ask("Checkpoint", after_step=9)
    train_together(workers, mesh=Mesh(dataShard=4))
    workers[0].wait_until(lambda progress: progress.step >= 13 and progress.checkpoint_step == 10)
    workers[1].kill()
    workers[2].kill()  # which keeps the copy of what rank 1 has
    survivors = [workers[0], workers[3]]
    lost = results(survivors)
    survivors[1].ask("Stop", after_step=12)
    train_together(survivors, mesh=Mesh(dataShard=2), generation=2)
    after = results(survivors)

    assert [result.error for result in lost] == ["GroupLostError"] * 2
    assert [result.outcome for result in after] == ["Stopped"] * 2
    assert [progress.step for progress in after[0].progress] == [11, 12, 13]
    assert after[0].digests == lost[0].digests[10:13]
    resumption = after[0].progress[0].resumption
    assert resumption is not None
    assert (resumption.source, resumption.step) == ("Checkpoint", 10)
    assert resumption.furthest_step == max(result.progress[-1].step for result in lost)

from __future__ import annotations

from datetime import timedelta

from modelscaling_operator.progress import newest_progress, progress_status
from tests.operator.runs import trained_world
from tests.operator.world import BEGIN, make_progress


def test_numbers_with_fractions_are_told_as_decimals() -> None:
    progress = make_progress(
        100, loss=1.23456, tokens_per_second=512.4, mfu_ratio=0.4567, goodput_ratio=0.9876
    )

    status = progress_status(progress, BEGIN)

    assert (status.loss, status.tokens_per_second) == ("1.2346", "512")
    assert (status.mfu_percent, status.goodput_percent) == ("45.7", "98.8")


def test_the_end_is_estimated_from_the_throughput() -> None:
    progress = make_progress(100, tokens_per_second=512.0)

    status = progress_status(progress, BEGIN)

    assert status.estimated_completion_time == BEGIN + timedelta(seconds=25)


def test_why_no_checkpoint_could_be_written_is_told_in_the_length_that_there_is() -> None:
    failing = progress_status(make_progress(1, checkpoint_failure="No space left. " * 100), BEGIN)
    fine = progress_status(make_progress(1), BEGIN)

    assert failing.checkpoint_failure is not None
    assert len(failing.checkpoint_failure) == 1024
    assert fine.checkpoint_failure is None


def test_the_first_rank_knows_best_whatever_its_index() -> None:
    world = trained_world()
    world.vanish(0)
    for _ in range(5):
        world.tick()
    assert world.members() == [1, 0]
    world.agent(0).progress = make_progress(1)

    progress = newest_progress(world.observe())

    assert progress is not None
    assert progress.step == world.step


def test_what_an_ended_pod_left_behind_is_its_last_word() -> None:
    world = trained_world(replicas=1)
    world.crash(0)

    progress = newest_progress(world.observe())

    assert progress is not None
    assert progress.step == world.step

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from modelscaling.api.conditions import ConditionType
from modelscaling_operator.progress import describe_unsaved, newest_progress, progress_status
from tests.operator.runs import CHECKPOINT, condition, trained_world
from tests.operator.world import BEGIN, make_progress


def test_numbers_with_fractions_are_told_as_decimals() -> None:
    progress = make_progress(
        100, loss=1.23456, tokens_per_second=512.4, mfu_ratio=0.4567, goodput_ratio=0.9876
    )

    status = progress_status(progress, None, BEGIN)

    assert (status.loss, status.tokens_per_second) == ("1.2346", "512")
    assert (status.mfu_percent, status.goodput_percent) == ("45.7", "98.8")


def test_the_end_is_estimated_from_the_throughput() -> None:
    progress = make_progress(100, tokens_per_second=512.0)

    status = progress_status(progress, None, BEGIN)

    assert status.estimated_completion_time == BEGIN + timedelta(seconds=25)


def test_why_no_checkpoint_could_be_written_is_told_in_the_length_that_there_is() -> None:
    failing = progress_status(
        make_progress(1, checkpoint_failure="No space left. " * 100), None, BEGIN
    )
    fine = progress_status(make_progress(1), None, BEGIN)

    assert failing.checkpoint_failure is not None
    assert len(failing.checkpoint_failure) == 1024
    assert fine.checkpoint_failure is None


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        ({"checkpoint_step": 40}, ""),
        ({"checkpoint_step": 40, "checkpoint_failure": "No space."}, " Steps after 40 are not "),
        ({"checkpoint_failure": "No space."}, " No step is saved: No space."),
    ],
)
def test_which_steps_are_not_saved_is_told_where_the_last_save_failed(
    progress: dict[str, Any], words: str
) -> None:
    told = describe_unsaved(progress_status(make_progress(50, **progress), None, BEGIN))

    assert told.startswith(words)
    assert bool(told) is bool(words)
    assert describe_unsaved(None) == ""


def test_a_run_that_is_suspended_without_its_last_steps_says_so() -> None:
    world = trained_world()
    world.group.checkpoint_failure = "No space."
    world.tick()
    world.edit(replicas=2, checkpoint=CHECKPOINT, suspend=True)
    for _ in range(5):
        world.tick()

    suspended = condition(world, ConditionType.SUSPENDED)
    assert suspended.message == "spec.suspend is true. No step is saved: No space."


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

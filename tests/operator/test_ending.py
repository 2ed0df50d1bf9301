from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.status import ConditionStatus, RunState
from modelscaling.exit_code import ExitCode
from modelscaling_operator.ending import LAST_RANKS_S
from modelscaling_operator.observation import PodPhase
from tests.operator.runs import condition, make_world, state, trained_world
from tests.operator.world import (
    TOTAL_STEPS,
    make_exit,
    make_failure,
)


def test_a_run_trains_to_its_end_and_keeps_its_pods() -> None:
    world = make_world()

    while world.status.completion_time is None:
        world.tick()
    world.run_until_quiet()

    assert state(world) is RunState.COMPLETE
    assert condition(world, ConditionType.COMPLETE).message == f"All {TOTAL_STEPS} steps are done."
    assert world.status.progress is not None
    assert world.status.progress.step == TOTAL_STEPS
    assert [pod.phase for pod in world.pods.values()] == [PodPhase.SUCCEEDED] * 2
    assert world.births == 2


def test_a_spare_goes_when_the_run_is_complete_and_is_not_waited_for() -> None:
    world = trained_world(replicas=2, elastic={"spares": 1})
    while world.step < TOTAL_STEPS:
        world.tick()
    done = world.now
    while world.status.completion_time is None:
        world.tick()
    world.run_until_quiet()

    assert world.now - done < timedelta(seconds=LAST_RANKS_S)
    assert state(world) is RunState.COMPLETE
    assert sorted(world.pods) == ["tiny-0", "tiny-1"]


def test_more_failures_than_allowed_fail_the_run_with_the_last_message() -> None:
    world = trained_world(maxRestarts=0)
    world.crash(0, failure=make_failure("WorkerDied"))
    world.run_until_quiet()

    assert state(world) is RunState.FAILED
    failed = condition(world, ConditionType.FAILED)
    assert failed.reason == Reason.MAX_RESTARTS_EXCEEDED
    assert failed.message == (
        "1 failures are more than spec.maxRestarts=0 allows; the last one: "
        "pod tiny-0: WorkerDied: A peer was lost."
    )
    assert len(world.pods) == 2


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        pytest.param(ExitCode.CONFIGURATION, "NoData", id="a bad configuration"),
        pytest.param(ExitCode.DIVERGED, "NotFinite", id="a loss that is not finite"),
    ],
)
def test_what_no_retry_can_mend_fails_the_run_at_once(code: ExitCode, reason: str) -> None:
    world = trained_world()
    world.crash(0, code, failure=make_failure(reason, code))
    world.tick()

    failed = condition(world, ConditionType.FAILED)
    assert (failed.status, failed.reason) == (ConditionStatus.TRUE, reason)
    assert failed.message == f"pod tiny-0: {reason}: A peer was lost."

    world.run_until_quiet()

    assert world.births == 2
    assert all(pod.ended for pod in world.pods.values())
    assert world.status.restarts.count == 0


def test_what_no_retry_can_mend_is_no_restart_while_its_pod_still_tells_of_it() -> None:
    world = trained_world()
    world.crash_worker(0)
    world.agent(0).failure = make_failure("NoData", ExitCode.CONFIGURATION)
    world.tick()

    assert condition(world, ConditionType.FAILED).reason == "NoData"
    assert world.status.restarts.count == 0


def test_a_deadline_stops_the_run_with_its_pods_saved() -> None:
    world = trained_world(activeDeadlineSeconds=20)
    while world.status.completion_time is None:
        world.tick()
    world.run_until_quiet()

    failed = condition(world, ConditionType.FAILED)
    assert failed.reason == Reason.DEADLINE_EXCEEDED
    assert [pod.exit.code for pod in world.pods.values() if pod.exit] == [75, 75]


def test_the_time_to_live_deletes_the_run_after_its_end() -> None:
    world = make_world(ttlSecondsAfterFinished=30)
    while world.status.completion_time is None:
        world.tick()
    finished = world.now
    while not world.deleted:
        world.tick()

    assert timedelta(seconds=28) < world.now - finished < timedelta(seconds=33)


def test_a_leader_that_is_done_is_enough_when_a_peer_crashes_after_it() -> None:
    world = trained_world()
    world.group.step = TOTAL_STEPS - 1
    world.tick()
    world.pods["tiny-1"] = replace(world.pods["tiny-1"], phase=PodPhase.FAILED, exit=make_exit(1))
    world.run_until_quiet()

    assert state(world) is RunState.COMPLETE

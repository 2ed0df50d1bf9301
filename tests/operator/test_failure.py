from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.group_status import RestartStatus
from modelscaling.protocol import AgentState
from modelscaling_operator.failure import count_failures, failure_while_forming, retry_time
from tests.operator.runs import trained_world
from tests.operator.world import BEGIN, World, make_failure

if TYPE_CHECKING:
    from modelscaling.api.status import Condition


def counted(world: World) -> RestartStatus:
    """Count what is seen, as a look does."""
    restarts = count_failures(world.observe(), world.now, step=world.step)
    world.status = world.status.model_copy(update={"restarts": restarts})
    return restarts


def fail_worker(world: World, index: int, *, attempt: int, failures: int = 1) -> None:
    agent = world.agent(index)
    agent.attempt = attempt
    agent.worker_failures += failures
    agent.failure = make_failure("WorkerDied")


@pytest.mark.parametrize(
    ("consecutive", "pause_s"),
    [(0, None), (1, None), (2, 1), (3, 2), (4, 4), (7, 32), (8, 60), (30, 60)],
)
def test_the_first_failure_has_no_pause_and_then_it_doubles(
    consecutive: int, pause_s: int | None
) -> None:
    restarts = RestartStatus(consecutive=consecutive, last_time=BEGIN)

    expected = None if pause_s is None else BEGIN + timedelta(seconds=pause_s)
    assert retry_time(restarts) == expected


def test_a_worker_that_died_is_counted_once_and_the_next_again() -> None:
    world = trained_world()
    fail_worker(world, 1, attempt=1)

    assert counted(world).count == 1
    assert counted(world).count == 1

    fail_worker(world, 1, attempt=2)
    restarts = counted(world)

    assert (restarts.count, restarts.consecutive) == (2, 2)
    assert restarts.message == "pod tiny-1: WorkerDied: A peer was lost."


def test_several_failures_between_two_looks_are_counted_each_as_one_attempt() -> None:
    world = trained_world()
    fail_worker(world, 1, attempt=4, failures=3)
    restarts = counted(world)

    assert (restarts.count, restarts.consecutive) == (3, 1)


def test_workers_that_die_of_one_cause_are_one_failed_attempt_whenever_each_is_seen() -> None:
    world = trained_world(replicas=4)
    for index in range(4):
        fail_worker(world, index, attempt=1)
        counted(world)

    restarts = world.status.restarts
    assert (restarts.count, restarts.consecutive) == (4, 1)


def test_pods_that_die_of_one_cause_are_one_failed_attempt() -> None:
    world = trained_world(replicas=4)
    for index in range(4):
        world.crash(index)
        counted(world)
        world.now += timedelta(seconds=2)

    restarts = world.status.restarts
    assert (restarts.count, restarts.consecutive) == (4, 1)


def test_a_replaced_pod_that_dies_as_well_is_another_failed_attempt() -> None:
    world = trained_world()
    world.crash(1)
    for _ in range(2):
        world.tick()
    world.crash(world.live_pods()[-1].index)
    world.tick(seconds=0)

    assert (world.status.restarts.count, world.status.restarts.consecutive) == (2, 2)


def test_a_step_ends_the_streak_but_not_the_count() -> None:
    world = trained_world()
    fail_worker(world, 1, attempt=1)
    counted(world)
    world.group.step += 1
    restarts = counted(world)

    assert (restarts.count, restarts.consecutive) == (1, 0)


def test_what_is_counted_is_remembered_while_its_pod_is_silent() -> None:
    world = trained_world()
    fail_worker(world, 1, attempt=1)
    counted(world)
    world.cut_off(1)
    counted(world)
    world.silent.clear()

    assert counted(world).count == 1


def test_what_is_gone_need_not_be_remembered() -> None:
    world = trained_world()
    fail_worker(world, 1, attempt=1)
    world.crash(0)

    assert len(counted(world).counted) == 2

    world.pods.clear()

    assert counted(world).counted == ()


def test_a_group_that_one_member_gave_up_is_counted_by_its_number() -> None:
    world = trained_world()
    world.agent(1).state = AgentState.WARM
    world.agent(1).failure = make_failure()

    assert counted(world).counted == ("generation:1",)
    assert counted(world).count == 1


def test_what_happened_to_a_member_itself_is_told_before_that_another_has_lost_it() -> None:
    world = trained_world(replicas=2)

    assert failure_while_forming(world.observe()) is None

    for index, reason in ((0, "GroupLost"), (1, "CheckpointFailed")):
        world.agent(index).state = AgentState.FORMING
        world.agent(index).failure = make_failure(reason)
    assert failure_while_forming(world.observe()) == (
        "pod tiny-1: CheckpointFailed: A peer was lost."
    )

    world.agent(1).failure = None
    assert failure_while_forming(world.observe()) == "pod tiny-0: GroupLost: A peer was lost."


def test_a_run_that_meets_again_says_why() -> None:
    world = trained_world()
    world.crash_worker(1, reason="CheckpointFailed")

    running = condition_of(world, ConditionType.RUNNING)

    assert running.reason == Reason.FORMING
    assert running.message == (
        "The pods meet and load the state. The last attempt failed: pod tiny-1: "
        "CheckpointFailed: A peer was lost."
    )


def condition_of(world: World, kind: ConditionType) -> Condition:
    """A condition as it is decided now."""
    return next(c for c in world.decide().status.conditions if c.type == kind)

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.status import ConditionStatus, RunState
from modelscaling.protocol import LateWorker
from tests.operator.runs import condition, state, trained_world

if TYPE_CHECKING:
    from tests.operator.world import World


def late(rank: int, **changes: Any) -> LateWorker:
    values: dict[str, Any] = {"step": 9, "seconds": 21.5, "is_waiting": False}
    return LateWorker(rank=rank, **{**values, **changes})


def look(world: World) -> None:
    world.take_status(world.decide().status)


def test_a_run_whose_steps_are_done_is_not_stalled() -> None:
    stalled = condition(trained_world(), ConditionType.STALLED)

    assert (stalled.status, stalled.reason) == (ConditionStatus.FALSE, Reason.STEPS_DONE)


def test_the_rank_that_holds_the_others_up_is_named_with_its_pod() -> None:
    world = trained_world()
    world.agent(0).late = (late(0, is_waiting=True),)
    world.agent(1).late = (late(1),)
    look(world)

    stalled = condition(world, ConditionType.STALLED)
    assert (stalled.status, stalled.reason) == (ConditionStatus.TRUE, Reason.NO_STEP)
    assert stalled.message == (
        "No step after step 9: rank 1 in pod tiny-1 does not come on; 1 others wait."
    )
    assert state(world) is RunState.STALLED


def test_where_all_wait_the_one_furthest_behind_is_named() -> None:
    world = trained_world()
    world.agent(0).late = (late(0, is_waiting=True, step=10),)
    world.agent(1).late = (late(1, is_waiting=True, step=9),)
    look(world)

    assert "rank 1 in pod tiny-1" in condition(world, ConditionType.STALLED).message


def test_who_waits_is_not_said_to_hold_the_others_up() -> None:
    world = trained_world()
    world.agent(0).late = (late(0, is_waiting=True),)
    look(world)

    assert condition(world, ConditionType.STALLED).message == (
        "No step after step 9: rank 0 in pod tiny-0 waits for its peers."
    )


def test_a_status_does_not_change_while_the_same_worker_is_late() -> None:
    world = trained_world()
    world.agent(1).late = (late(1),)
    look(world)
    before = world.status
    world.agent(1).late = (late(1, seconds=40),)
    look(world)

    assert world.status.conditions == before.conditions


def test_a_run_that_comes_on_again_is_not_stalled_any_more() -> None:
    world = trained_world()
    world.agent(1).late = (late(1),)
    look(world)
    world.agent(1).late = ()
    look(world)

    assert state(world) is RunState.RUNNING


def test_an_agent_of_an_older_group_names_nobody() -> None:
    world = trained_world()
    world.agent(1).late = (late(1),)
    world.agent(1).generation = 0
    look(world)

    assert condition(world, ConditionType.STALLED).status is ConditionStatus.FALSE

"""Pods that are lost, killed or told to leave while the run trains."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.status import RunState
from modelscaling.exit_code import ExitCode
from modelscaling_operator.action import Assign, CreatePods, DeletePod, Stop
from tests.operator.runs import condition, state, trained_world
from tests.operator.world import RUN, World

_SHARDED = {"strategy": "Custom", "dataReplicate": 1}


def run(world: World, ticks: int) -> list[object]:
    """Tick, and return all that was done."""
    done: list[object] = []
    for _ in range(ticks):
        world.tick()
        done += world.actions
    return done


def cause(world: World) -> str:
    return world.status.rescales[-1].cause


def test_a_pod_that_only_the_operator_does_not_hear_is_left_alone() -> None:
    world = trained_world()
    world.cut_off(1)

    assert run(world, 60) == []
    assert world.births == 2


def test_an_operator_that_is_cut_off_from_all_pods_does_nothing() -> None:
    world = trained_world(elastic={"minReplicas": 1})
    world.cut_off(0)
    world.cut_off(1)

    assert run(world, 60) == []


def test_a_lost_node_is_given_up_and_its_pod_replaced_elsewhere_at_once() -> None:
    world = trained_world()
    lost = world.pods["tiny-1"]
    world.lose_node(1)

    world.tick()

    assert world.actions[-1] == DeletePod(pod=lost, grace_s=0)
    (create,) = (action for action in world.actions if isinstance(action, CreatePods))
    assert create.indexes == (2,)
    assert state(world) is RunState.RESTARTING

    run(world, 6)

    assert state(world) is RunState.RUNNING
    assert world.members() == [0, 2]
    assert cause(world) == Reason.NODE_LOST
    assert world.status.restarts.count == 0


def test_the_first_pod_may_be_the_one_that_is_lost() -> None:
    world = trained_world()
    world.lose_node(0)
    run(world, 6)

    assert state(world) is RunState.RUNNING
    assert world.members() == [1, 2]
    assert (cause(world), world.group.losses) == (Reason.NODE_LOST, 0)


def test_a_run_without_a_volume_that_loses_all_its_pods_begins_again_and_says_so() -> None:
    world = trained_world(checkpoint=None)
    assert world.status.progress is not None
    known = world.status.progress.step
    world.vanish(0)
    world.vanish(1)
    run(world, 8)

    (record,) = world.status.rescales
    assert (record.source, record.step, record.lost_steps) == ("Initial", 0, known)

    # The group owes nothing more, so a planned change need not wait for it.
    world.edit(replicas=4, checkpoint=None)
    run(world, 6)

    assert len(world.members()) == 4
    assert cause(world) == Reason.REPLICAS_CHANGED


def test_a_node_that_comes_back_after_it_was_given_up_finds_its_pod_gone() -> None:
    world = trained_world(elastic={"minReplicas": 1})
    lost = world.pods["tiny-1"]
    world.lose_node(1)
    run(world, 8)

    assert all(pod.uid != lost.uid for pod in world.pods.values())
    assert world.members() == [0, 2]


def test_a_pod_whose_agent_is_gone_is_left_to_its_kubelet_which_knows_why() -> None:
    world = trained_world()
    world.kill(1)

    assert run(world, 2) == []

    world.crash(1)
    world.tick()

    assert world.status.restarts.count == 1
    assert world.status.restarts.message == "pod tiny-1 ended with exit code 1 (Error)"


def test_a_drained_pod_trains_on_until_another_one_takes_its_place() -> None:
    world = trained_world(parallelism=_SHARDED)
    step = world.step
    world.drain(1)

    world.tick()

    assert world.actions == [CreatePods(indexes=(2,), image="trainer:1")]
    assert state(world) is RunState.RESCALING

    done = run(world, 5)

    (assign,) = (action for action in done if isinstance(action, Assign))
    assert [member.index for member in assign.assignment.members] == [0, 2]
    assert [member.index for member in assign.assignment.leaving] == [1]
    assert sorted(world.pods) == ["tiny-0", "tiny-2"]
    assert (world.step, world.group.losses) == (step + 6, 0)
    assert cause(world) == Reason.POD_LEFT
    assert world.status.restarts.count == 0


def test_a_pod_that_is_killed_while_it_is_still_heard_is_in_no_group_any_more() -> None:
    world = trained_world(elastic={"minReplicas": 1})
    killed = world.pods["tiny-1"]
    world.drain(1)
    deadline = world.now + timedelta(seconds=1)
    world.pods["tiny-1"] = replace(killed, deletion_deadline=deadline)
    done = run(world, 1)

    (assign,) = (action for action in done if isinstance(action, Assign))
    assert [member.index for member in assign.assignment.members] == [0]
    assert assign.assignment.leaving == ()

    run(world, 6)

    assert world.members() == [0, 2]
    assert [record.to for record in world.status.rescales] == ["single", "dp2"]


def test_a_drained_pod_that_nobody_can_replace_saves_before_it_is_killed() -> None:
    world = trained_world(parallelism=_SHARDED)
    world.room = 0
    world.drain(0)
    run(world, 40)

    assert state(world) is RunState.RESTARTING or state(world) is RunState.PENDING
    saved = world.group.saved

    world.room = None
    run(world, 5)

    assert state(world) is RunState.RUNNING
    assert (world.group.losses, cause(world)) == (0, Reason.POD_LEFT)
    assert world.status.rescales[-1].step == saved


def test_all_pods_may_be_drained_one_after_the_other() -> None:
    world = trained_world(replicas=2, parallelism=_SHARDED)
    for _ in range(2):
        world.drain(world.live_pods()[0].index)
        run(world, 8)

    assert state(world) is RunState.RUNNING
    assert (world.group.losses, world.status.restarts.count) == (0, 0)


@pytest.mark.parametrize(
    ("code", "changes", "expected"),
    [
        pytest.param(ExitCode.CRASHED, {}, Reason.GROUP_BROKE, id="killed"),
        pytest.param(ExitCode.INTERRUPTED, {}, Reason.POD_LEFT, id="told to end by its node"),
        pytest.param(
            ExitCode.CRASHED, {"disruption": "Evicted"}, Reason.GROUP_BROKE, id="evicted at once"
        ),
    ],
)
def test_the_cause_of_the_next_group_is_how_the_pod_ended(
    code: ExitCode, changes: dict[str, Any], expected: Reason
) -> None:
    world = trained_world()
    world.crash(1, code, **changes)
    run(world, 8)

    assert cause(world) == expected


def test_a_leaver_that_dies_before_it_handed_over_is_done_without() -> None:
    world = trained_world(replicas=2, checkpoint=None)
    world.edit(replicas=1)
    world.deaf.add(world.pods["tiny-0"].uid)
    world.tick()
    group = world.status.group
    assert group is not None
    assert (group.leaving, group.trained) == ((world.pods["tiny-1"].uid,), False)

    world.crash(1)
    run(world, 3)

    assert world.status.group is not None
    assert (world.status.group.generation, world.status.group.leaving) == (3, ())
    assert state(world) is RunState.RUNNING


def test_a_leaver_that_ended_in_order_is_no_reason_to_form_again() -> None:
    world = trained_world(replicas=2, checkpoint=None)
    world.edit(replicas=1)
    done = run(world, 20)

    assert sum(isinstance(action, Assign) for action in done) == 1
    assert not any(isinstance(action, Stop) for action in done)
    assert sorted(world.pods) == ["tiny-0"]


def test_what_was_to_be_handed_to_a_group_that_never_trained_is_handed_to_the_next() -> None:
    world = trained_world(replicas=4, checkpoint=None, parallelism=_SHARDED)
    world.edit(replicas=2, parallelism=_SHARDED)
    world.deaf.add(world.pods["tiny-0"].uid)
    world.tick()
    world.edit(replicas=1, parallelism=_SHARDED)
    world.tick()

    group = world.status.group
    assert group is not None
    assert group.generation == 3
    assert len(group.leaving) == 3
    assert world.group.losses == 0


def test_no_group_is_formed_without_a_holder_of_state_that_is_silent_for_a_moment() -> None:
    world = trained_world(replicas=4, checkpoint=None, parallelism=_SHARDED)
    world.edit(replicas=2, parallelism=_SHARDED)
    world.cut_off(3)

    assert run(world, 5) == []

    world.silent.clear()
    run(world, 2)

    assert (world.members(), world.group.losses) == ([0, 1], 0)


def test_a_worker_that_was_replaced_in_its_pod_is_counted_and_in_the_ledger() -> None:
    world = trained_world()
    world.crash_worker(1)
    run(world, 3)

    assert (world.status.restarts.count, world.births) == (1, 2)
    assert world.status.group is not None
    assert world.status.group.generation == 1
    (record,) = world.status.rescales
    assert (record.cause, record.from_, record.to) == ("WorkerReplaced", "dp2", "dp2")


def test_a_run_in_which_one_worker_dies_again_and_again_at_one_step_fails() -> None:
    world = trained_world()
    world.group.fails_at = world.step + 3
    run(world, 20)

    failed = condition(world, ConditionType.FAILED)
    assert failed.reason == Reason.FAILS_AT_SAME_STEP
    assert failed.message.startswith(
        f"6 attempts failed without a step in between, after step {world.step}; the last one: "
        "pod tiny-1: WorkerDied"
    )
    assert world.status.restarts.count == 6
    assert world.births == 2


def test_pods_of_the_run_keep_one_place_each() -> None:
    world = trained_world(replicas=4)
    world.lose_node(1)
    world.drain(2)
    run(world, 8)

    assert state(world) is RunState.RUNNING
    assert len(world.pods) == 4
    assert RUN.pod_name(1) not in world.pods

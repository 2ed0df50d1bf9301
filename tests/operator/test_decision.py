from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.status import ConditionStatus, RunState
from modelscaling.exit_code import ExitCode
from modelscaling.protocol import AgentState, GroupAssignment, StopMode
from modelscaling_operator.action import Assign, CreatePods, DeletePod, Stop
from modelscaling_operator.observation import Obstacle, PodPhase
from modelscaling_operator.presence import HICCUP_S
from tests.operator.runs import (
    CHECKPOINT,
    OTHER_VOLUME,
    condition,
    make_world,
    state,
    trained_world,
)
from tests.operator.world import RUN, World, make_failure, make_pod


def test_a_new_run_gets_all_its_pods_at_once() -> None:
    world = make_world(replicas=3, training__globalBatchSize=9)

    decision = world.tick()

    assert decision.actions == (CreatePods(indexes=(0, 1, 2), image="trainer:1"),)
    assert decision.status.start_time == world.observe().status.start_time is not None


def test_the_number_of_a_group_is_written_before_any_agent_is_told() -> None:
    world = make_world()
    while world.status.group is None:
        decision = world.tick(act=False) if world.agents else world.tick()

    assert decision.status.group is not None
    assert any(isinstance(action, Assign) for action in decision.actions)
    assert all(agent.generation == 0 for agent in world.agents.values())

    follow_up = world.decide()

    assert follow_up.status.group == decision.status.group
    assert [a.assignment.generation for a in follow_up.actions if isinstance(a, Assign)] == [1]


def test_no_group_is_formed_while_an_agent_still_starts() -> None:
    world = make_world()
    world.tick()
    world.tick()
    world.agent(0).state = AgentState.STARTING

    decision = world.decide()

    assert decision.actions == ()
    assert decision.status.group is None
    assert decision.status.ready_replicas == 1


def test_nothing_is_done_to_a_group_that_trains() -> None:
    world = trained_world()

    for _ in range(20):
        world.tick()

        assert world.actions == []


def next_assignment(world: World) -> GroupAssignment:
    """Tick until an operator has decided a group, and dies before it tells anybody."""
    for _ in range(10):
        decision = world.decide()
        for action in decision.actions:
            if isinstance(action, Assign):
                world.take_status(decision.status)
                return action.assignment
        world.tick()
    raise AssertionError("no group is formed")


def test_suspending_saves_and_gives_all_pods_back() -> None:
    world = trained_world()
    world.edit(replicas=2, checkpoint=CHECKPOINT, suspend=True)

    world.tick()

    assert {action.mode for action in world.actions if isinstance(action, Stop)} == {
        StopMode.SUSPEND
    }
    assert state(world) is RunState.SUSPENDING

    world.run_until_quiet()

    assert world.pods == {}
    assert state(world) is RunState.SUSPENDED
    assert world.status.restarts.count == 0


def test_a_suspended_run_goes_on_with_a_higher_number() -> None:
    world = trained_world()
    world.edit(replicas=2, checkpoint=CHECKPOINT, suspend=True)
    world.run_until_quiet()
    step = world.step
    world.edit(replicas=2, checkpoint=CHECKPOINT)
    for _ in range(10):
        world.tick()

    assert world.status.group is not None
    assert world.status.group.generation == 2
    assert world.step > step
    assert world.status.rescales == ()


def test_a_run_that_goes_on_is_told_which_checkpoint_it_must_find() -> None:
    world = trained_world()
    world.edit(replicas=2, checkpoint=CHECKPOINT, suspend=True)
    world.run_until_quiet()
    saved = world.step
    world.edit(replicas=2, checkpoint=OTHER_VOLUME)
    assigned = next_assignment(world)

    assert assigned.checkpoint_step == saved > 0


def test_a_run_that_cannot_save_where_it_has_moved_to_still_knows_its_checkpoint() -> None:
    world = trained_world()
    world.edit(replicas=2, checkpoint=CHECKPOINT, suspend=True)
    world.run_until_quiet()
    saved = world.step
    world.edit(replicas=2, checkpoint=CHECKPOINT)
    for _ in range(10):
        world.tick()
    world.group.saved, world.group.checkpoint_failure = 0, "No space left on device"
    world.edit(replicas=2, checkpoint=OTHER_VOLUME)
    for _ in range(15):
        world.tick()
    assert [record.cause for record in world.status.rescales] == ["TemplateChanged"]

    for pod in list(world.pods.values()):
        world.vanish(pod.index)

    assert next_assignment(world).checkpoint_step == saved > 0


def test_the_report_of_a_pod_that_just_fell_silent_is_waited_for() -> None:
    world = trained_world()
    world.edit(replicas=2, checkpoint=CHECKPOINT, suspend=True)
    uid = world.pods[RUN.pod_name(1)].uid
    world.cut_off(1)

    def is_deleted() -> bool:
        return any(isinstance(a, DeletePod) and a.pod.uid == uid for a in world.actions)

    for _ in range(HICCUP_S - 1):
        world.tick()
        assert not is_deleted()

    world.tick()
    world.tick()
    assert is_deleted()


def test_a_suspended_run_says_which_steps_it_has_not_saved() -> None:
    world = trained_world(replicas=2)
    world.room = 1
    world.vanish(1)
    world.tick()
    step = world.step
    world.edit(replicas=2, checkpoint=CHECKPOINT, suspend=True)
    world.run_until_quiet()

    assert condition(world, ConditionType.SUSPENDED).message == (
        f"spec.suspend is true. No step is saved, and {step} were done."
    )


def test_a_group_that_meets_again_saves_what_it_holds_once_it_trains() -> None:
    world = trained_world()
    world.crash_worker(0)
    world.edit(replicas=2, checkpoint=CHECKPOINT, suspend=True)
    step = world.step
    world.run_until_quiet()

    assert world.group.saved >= step
    assert not world.pods
    assert condition(world, ConditionType.SUSPENDED).message == "spec.suspend is true."


def test_a_group_that_does_not_come_to_meet_again_is_suspended_all_the_same() -> None:
    world = trained_world()
    assert world.status.group is not None
    world.group.barred.add(world.status.group.generation)
    world.crash_worker(0)
    world.edit(replicas=2, checkpoint=CHECKPOINT, suspend=True)
    for _ in range(50):
        world.tick()
    assert len(world.pods) == 2

    for _ in range(20):
        world.tick()
    assert not world.pods


def test_a_group_that_takes_the_state_over_saves_it_once_it_trains() -> None:
    world = trained_world(checkpoint=None)
    world.edit(replicas=2, checkpoint=CHECKPOINT)
    next_assignment(world)
    step = world.step
    world.edit(replicas=2, checkpoint=CHECKPOINT, suspend=True)
    world.run_until_quiet()

    assert state(world) is RunState.SUSPENDED
    assert world.group.saved > step


def test_no_replicas_suspends_the_run() -> None:
    world = trained_world()
    world.edit(replicas=0, checkpoint=CHECKPOINT)
    world.run_until_quiet()

    assert state(world) is RunState.SUSPENDED
    assert condition(world, ConditionType.SUSPENDED).reason == Reason.SCALED_TO_ZERO


def test_a_crashed_pod_is_counted_told_and_replaced_at_once() -> None:
    world = trained_world()
    world.crash(1, failure=make_failure("WorkerDied"))

    world.tick(seconds=0.5)

    assert [type(action) for action in world.actions] == [CreatePods, DeletePod]
    assert world.status.restarts.count == 1
    assert state(world) is RunState.RESTARTING
    running = condition(world, ConditionType.RUNNING)
    assert running.reason == Reason.POD_FAILED
    assert running.message == "pod tiny-1: WorkerDied: A peer was lost."

    for _ in range(10):
        world.tick()

    assert state(world) is RunState.RUNNING
    assert world.status.restarts.count == 1
    assert world.status.group is not None
    assert world.status.group.cause == Reason.GROUP_BROKE
    assert world.births == 3


def test_a_pause_before_the_next_attempt_is_told() -> None:
    world = trained_world()
    for _ in range(2):
        while len(world.live_pods()) < 2 or len(world.agents) < 2:
            world.tick(seconds=0)
        world.crash(world.live_pods()[-1].index)
        world.now += timedelta(seconds=1)

    world.tick(seconds=0)

    running = condition(world, ConditionType.RUNNING)
    assert running.reason == Reason.BACKING_OFF
    assert "The next attempt begins at" in running.message


def test_a_failure_is_counted_once_even_if_the_operator_dies_after_it_was_written() -> None:
    world = trained_world()
    world.crash(0)
    for _ in range(5):
        world.tick(seconds=0, act=False)

    assert world.status.restarts.count == 1


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"disruption": "Evicted for memory"}, id="evicted"),
        pytest.param({"code": ExitCode.INTERRUPTED}, id="told to end by its node"),
    ],
)
def test_a_pod_that_was_taken_away_is_replaced_at_once_and_not_counted(
    changes: dict[str, Any],
) -> None:
    world = trained_world(maxRestarts=0)
    world.crash(1, **changes)
    world.tick()

    assert [type(action) for action in world.actions] == [CreatePods, DeletePod]

    for _ in range(8):
        world.tick()

    assert state(world) is RunState.RUNNING
    assert world.status.restarts.count == 0


def test_a_pod_that_vanished_is_created_again_at_once() -> None:
    world = trained_world(maxRestarts=0)
    world.vanish(0)
    world.tick()

    assert world.actions == [CreatePods(indexes=(0,), image="trainer:1")]
    for _ in range(8):
        world.tick()
    assert state(world) is RunState.RUNNING


def test_a_group_that_was_given_up_in_living_pods_is_counted_and_formed_again() -> None:
    world = trained_world()
    world.give_up()
    world.tick(seconds=0.5)

    assert [type(action) for action in world.actions] == [Assign]
    assert world.status.restarts.count == 1
    assert world.status.group is not None
    assert (world.status.group.generation, world.status.group.cause) == (2, "GroupBroke")
    assert world.births == 2


def test_a_pod_stuck_in_deletion_is_forced() -> None:
    world = trained_world()
    stuck = replace(world.live_pods()[1], deletion_deadline=world.now - timedelta(seconds=11))
    world.pods[stuck.name] = stuck

    assert DeletePod(pod=stuck, grace_s=0) in world.decide().actions


def test_a_bad_spec_starts_nothing_and_says_why() -> None:
    world = make_world(replicas=3)
    decision = world.tick()

    assert decision.actions == ()
    accepted = condition(world, ConditionType.ACCEPTED)
    assert (accepted.status, accepted.reason) == (ConditionStatus.FALSE, Reason.INVALID_SPEC)
    assert accepted.message.startswith(
        "spec.training.globalBatchSize: 8 is not divisible by the data-parallel size 3"
    )
    assert state(world) is RunState.INVALID


def test_a_bad_edit_leaves_the_group_that_trains_alone() -> None:
    world = trained_world()
    world.edit(replicas=3, checkpoint=CHECKPOINT)
    step = world.step
    for _ in range(5):
        world.tick()

        assert world.actions == []

    assert world.step == step + 5
    assert state(world) is RunState.RUNNING
    assert condition(world, ConditionType.ACCEPTED).status is ConditionStatus.FALSE

    world.edit(replicas=4, checkpoint=CHECKPOINT)
    for _ in range(8):
        world.tick()

    assert state(world) is RunState.RUNNING
    assert condition(world, ConditionType.ACCEPTED).status is ConditionStatus.TRUE


def test_a_mesh_that_is_not_legal_leaves_the_group_that_trains_alone() -> None:
    world = trained_world(replicas=4)
    world.edit(replicas=4, checkpoint=CHECKPOINT, parallelism={"strategy": "Custom", "pipeline": 4})

    world.tick()

    assert (world.actions, state(world)) == ([], RunState.RUNNING)
    accepted = condition(world, ConditionType.ACCEPTED)
    assert (accepted.status, accepted.message) == (
        ConditionStatus.FALSE,
        (
            "spec.parallelism.pipeline: pipeline=4 × stagesPerProcess=1 are 4 stages, more than "
            "layers=2; set pipeline to at most 2 The run goes on with the spec that it had before."
        ),
    )


def test_the_plan_is_told_with_its_memory_its_reason_and_what_was_not_taken() -> None:
    world = make_world()

    plan = world.tick().status.plan

    assert plan is not None
    assert (plan.mesh, plan.estimated_memory_bytes) == ("dp2", 4_470_400)
    assert plan.reason.startswith("every process holds the whole model")
    assert [other.mesh for other in plan.rejected] == ["fsdp2", "cp2", "pp2"]


def test_a_paused_run_has_a_plan_without_memory() -> None:
    plan = make_world(replicas=0).tick().status.plan

    assert plan is not None
    assert plan.estimated_memory_bytes is None


def test_pods_of_a_run_keep_their_image_over_an_upgrade_of_the_operator() -> None:
    world = trained_world()
    world.pods = {name: replace(pod, image="trainer:0") for name, pod in world.pods.items()}
    world.vanish(1)
    world.tick()

    assert world.actions == [CreatePods(indexes=(1,), image="trainer:0")]


def test_what_keeps_a_pod_from_starting_is_told() -> None:
    world = make_world()
    world.tick()
    world.pods["tiny-0"] = replace(
        world.pods["tiny-0"],
        phase=PodPhase.PENDING,
        address=None,
        obstacle=Obstacle(
            reason=Reason.UNSCHEDULABLE, message='persistentvolumeclaim "runs" not found'
        ),
    )
    world.tick()

    running = condition(world, ConditionType.RUNNING)
    assert running.reason == Reason.UNSCHEDULABLE
    assert running.message == 'persistentvolumeclaim "runs" not found'
    assert state(world) is RunState.PENDING


def test_a_pod_of_an_older_run_of_the_same_name_keeps_its_index() -> None:
    world = make_world()
    world.pods["tiny-0"] = make_pod(0, owner_uid="older")
    for _ in range(10):
        world.tick()

    assert sorted(world.pods) == ["tiny-0", "tiny-1", "tiny-2"]
    assert world.members() == [1, 2]
    assert state(world) is RunState.RUNNING


def test_a_lost_status_takes_up_the_agents_number() -> None:
    world = trained_world()
    world.give_up()
    world.status = type(world.status)()
    for _ in range(4):
        world.tick()

    assert world.status.group is not None
    assert world.status.group.generation == 2

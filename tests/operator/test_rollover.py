"""What the spec says of its pods is edited while the run trains."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.status import RunState
from modelscaling.protocol import AgentState, StopMode
from modelscaling_operator.action import Assign, CreatePods, Stop
from modelscaling_operator.observation import Obstacle, PodPhase
from tests.operator.runs import CHECKPOINT, OTHER_VOLUME, condition, state, trained_world
from tests.operator.world import make_failure

if TYPE_CHECKING:
    from tests.operator.world import World

PATIENCE_S = 60
OTHER_IMAGE = {"spec": {"containers": [{"name": "trainer", "image": "trainer:2"}]}}


def edit(world: World, **changes: Any) -> None:
    world.edit(**{"replicas": 2, "checkpoint": CHECKPOINT, **changes})


def hinder(world: World, reason: Reason, message: str) -> None:
    """Keep the pods of the new template, just created, from starting."""
    obstacle = Obstacle(reason=reason, message=message)
    for name, pod in world.pods.items():
        if pod.image == "trainer:2":
            world.pods[name] = replace(pod, phase=PodPhase.PENDING, address=None, obstacle=obstacle)


def tick_until_stopped(world: World, *, at_most: int) -> int:
    """Return the ticks until pods are told to save and end."""
    for ticks in range(at_most):
        world.tick()
        if any(isinstance(action, Stop) for action in world.actions):
            return ticks
    raise AssertionError(f"nobody is told to end within {at_most} ticks")


def finished_rollover(world: World) -> None:
    for _ in range(15):
        world.tick()
    assert state(world) is RunState.RUNNING
    assert {pod.image for pod in world.pods.values()} == {"trainer:2"}
    assert len(world.pods) == 2
    assert world.status.restarts.count == 0
    assert [record.cause for record in world.status.rescales] == ["TemplateChanged"]
    assert [record.lost_steps for record in world.status.rescales] == [0]


def test_the_old_pods_train_until_the_new_ones_are_warm_and_then_save_and_end() -> None:
    world = trained_world()
    step = world.step
    edit(world, template=OTHER_IMAGE)
    world.tick()

    assert world.actions == [CreatePods(indexes=(2, 3), image="trainer:2")]

    ticks = tick_until_stopped(world, at_most=10)

    assert world.step >= step + ticks > step
    assert [action.mode for action in world.actions if isinstance(action, Stop)] == [
        StopMode.SUSPEND
    ] * 2
    assert {pod.index for pod in world.live_pods()} >= {2, 3}
    finished_rollover(world)


def test_without_a_volume_the_state_moves_from_memory_to_memory() -> None:
    world = trained_world(checkpoint=None)
    edit(world, checkpoint=None, template=OTHER_IMAGE)
    for _ in range(4):
        world.tick()
        assert not any(
            action.mode is StopMode.SUSPEND for action in world.actions if isinstance(action, Stop)
        )

    finished_rollover(world)


@pytest.mark.parametrize("checkpoint", [CHECKPOINT, None])
def test_an_image_that_is_missing_leaves_the_old_group_training(
    checkpoint: dict[str, Any] | None,
) -> None:
    world = trained_world(checkpoint=checkpoint)
    group, step = world.status.group, world.step
    edit(world, checkpoint=checkpoint, template=OTHER_IMAGE)
    world.tick()
    hinder(world, Reason.POD_CANNOT_START, "pod tiny-2: ErrImagePull: not found")
    for _ in range(PATIENCE_S + 20):
        world.tick()

    assert world.step == step + PATIENCE_S + 20 + 1
    assert state(world) is RunState.RESCALING
    rescaling = condition(world, ConditionType.RESCALING)
    assert rescaling.reason == Reason.POD_CANNOT_START
    assert rescaling.message == (
        "Pods of the edited spec are to replace those that train: pod tiny-2: ErrImagePull: "
        "not found"
    )

    edit(world, checkpoint=checkpoint)
    for _ in range(5):
        world.tick()

    assert world.status.group is not None
    assert group is not None
    assert world.status.group.generation == group.generation
    assert sorted(world.pods) == ["tiny-0", "tiny-1"]
    assert state(world) is RunState.RUNNING
    assert world.status.rescales == ()


@pytest.mark.parametrize("checkpoint", [CHECKPOINT, None])
def test_no_old_pod_makes_room_for_a_new_one(checkpoint: dict[str, Any] | None) -> None:
    world = trained_world(checkpoint=checkpoint)
    world.room = 2
    edit(world, checkpoint=checkpoint, template=OTHER_IMAGE)
    world.tick()
    hinder(world, Reason.UNSCHEDULABLE, "Insufficient cpu")
    step = world.step
    for _ in range(PATIENCE_S + 20):
        world.tick()

    assert world.step == step + PATIENCE_S + 20
    assert condition(world, ConditionType.RESCALING).reason == Reason.UNSCHEDULABLE

    edit(world, checkpoint=checkpoint, template=OTHER_IMAGE, suspend=True)
    for _ in range(10):
        world.tick()
    edit(world, checkpoint=checkpoint, template=OTHER_IMAGE)
    for _ in range(10):
        world.tick()

    assert state(world) is RunState.RUNNING
    assert {pod.image for pod in world.pods.values()} == {"trainer:2"}


@pytest.mark.parametrize(
    ("checkpoint", "edited"),
    [
        (None, {"processesPerReplica": 2}),
        (CHECKPOINT, {"processesPerReplica": 2}),
        (CHECKPOINT, {"processesPerReplica": 2, "replicas": 1}),
        (None, {"checkpoint": OTHER_VOLUME}),
        (CHECKPOINT, {"checkpoint": OTHER_VOLUME}),
        (CHECKPOINT, {"checkpoint": None}),
        (CHECKPOINT, {"checkpoint": OTHER_VOLUME, "template": OTHER_IMAGE}),
    ],
)
def test_to_other_processes_and_another_volume_the_state_moves_from_memory_to_memory(
    checkpoint: dict[str, Any] | None, edited: dict[str, Any]
) -> None:
    world = trained_world(checkpoint=checkpoint)
    old = {pod.uid for pod in world.pods.values()}
    step = world.step
    edit(world, **{"checkpoint": checkpoint, **edited})
    for _ in range(15):
        world.tick()
        assert not any(
            action.mode is StopMode.SUSPEND for action in world.actions if isinstance(action, Stop)
        )

    assert world.step >= step + 10
    assert world.group.losses == 0
    assert state(world) is RunState.RUNNING
    pods = list(world.pods.values())
    assert len(pods) == edited.get("replicas", 2)
    assert old.isdisjoint(pod.uid for pod in pods)
    assert {pod.processes for pod in pods} == {edited.get("processesPerReplica", 1)}
    (record,) = world.status.rescales
    assert (record.cause, record.source, record.lost_steps) == ("TemplateChanged", "Memory", 0)


@pytest.mark.parametrize("edited", [{"processesPerReplica": 2}, {"checkpoint": OTHER_VOLUME}])
def test_pods_that_take_over_from_memory_have_the_image_of_those_that_hand_over(
    edited: dict[str, Any],
) -> None:
    """The operator was upgraded while the run trained, and its default is trainer:1 by now."""
    world = trained_world()
    world.pods = {name: replace(pod, image="trainer:0") for name, pod in world.pods.items()}
    edit(world, **edited)
    world.tick()

    assert world.actions == [CreatePods(indexes=(2, 3), image="trainer:0")]

    edit(world, template={"metadata": {"labels": {"team": "a"}}})
    world.tick()

    assert CreatePods(indexes=(4, 5), image="trainer:1") in world.actions


def test_while_saves_fail_the_old_pods_train_on_and_it_is_said_what_they_wait_for() -> None:
    world = trained_world()
    world.group.checkpoint_failure = "No space left on device"
    step = world.step
    edit(world, template=OTHER_IMAGE)
    for _ in range(20):
        world.tick()
        assert not any(isinstance(action, (Assign, Stop)) for action in world.actions)

    assert world.step == step + 20
    rescaling = condition(world, ConditionType.RESCALING)
    assert rescaling.reason == Reason.CHECKPOINT_FAILED
    assert rescaling.message == (
        "Pods of the edited spec are to replace those that train: they wait for a save that "
        "succeeds. No step is saved: No space left on device"
    )

    world.group.checkpoint_failure = None
    tick_until_stopped(world, at_most=5)

    assert {a.mode for a in world.actions if isinstance(a, Stop)} == {StopMode.SUSPEND}
    finished_rollover(world)


def test_old_pods_that_meet_again_as_the_new_ones_are_warm_save_once_they_train() -> None:
    world = trained_world()
    edit(world, template=OTHER_IMAGE)
    world.tick()
    group = world.status.group
    assert group is not None
    world.group.barred.add(group.generation)
    world.crash_worker(0)
    for _ in range(20):
        world.tick()
        assert not any(isinstance(action, (Assign, Stop)) for action in world.actions)

    assert {pod.image for pod in world.live_pods()} == {"trainer:1", "trainer:2"}

    world.group.barred.clear()
    tick_until_stopped(world, at_most=5)
    for _ in range(15):
        world.tick()

    assert state(world) is RunState.RUNNING
    assert {pod.image for pod in world.pods.values()} == {"trainer:2"}
    assert world.status.rescales[-1].cause == "TemplateChanged"
    assert world.status.rescales[-1].lost_steps == 0


def test_no_save_is_awaited_of_a_group_that_does_not_come_to_train_again() -> None:
    world = trained_world()
    world.group.checkpoint_failure = "Input/output error"
    world.tick()
    group = world.status.group
    assert group is not None
    world.group.barred.add(group.generation)
    world.crash_worker(0)
    edit(world, template=OTHER_IMAGE)
    for _ in range(50):
        world.tick()

    assert world.status.group is not None
    assert world.status.group.generation == group.generation

    for _ in range(20):
        world.tick()

    assert state(world) is RunState.RUNNING
    assert {pod.image for pod in world.pods.values()} == {"trainer:2"}


def test_a_volume_that_cannot_be_written_is_left_for_another_by_way_of_memory() -> None:
    world = trained_world()
    world.group.checkpoint_failure = "No space left on device"
    edit(world, checkpoint=OTHER_VOLUME, template=OTHER_IMAGE)

    finished_rollover(world)

    assert world.status.rescales[0].source == "Memory"


def test_those_that_hand_over_are_told_how_many_processes_they_have() -> None:
    world = trained_world(checkpoint=None)
    edit(world, checkpoint=None, processesPerReplica=2)
    assign = None
    while assign is None:
        world.tick()
        assign = next((action for action in world.actions if isinstance(action, Assign)), None)

    assert [member.processes for member in assign.assignment.members] == [2, 2]
    assert [member.processes for member in assign.assignment.leaving] == [1, 1]
    assert assign.assignment.mesh.size == 4


def test_a_pod_that_is_lost_meanwhile_is_replaced_by_one_of_the_new_template() -> None:
    world = trained_world()
    edit(world, template=OTHER_IMAGE)
    world.tick()
    world.lose_node(1)
    for _ in range(15):
        world.tick()

    assert state(world) is RunState.RUNNING
    assert {pod.image for pod in world.pods.values()} == {"trainer:2"}
    assert sum(record.lost_steps for record in world.status.rescales) == 0


def test_a_volume_that_cannot_be_read_leaves_the_old_group_training_with_the_reason() -> None:
    world = trained_world()
    step = world.step
    edit(world, checkpoint=OTHER_VOLUME)
    for _ in range(20):
        world.tick()
        for agent in world.agents.values():
            if agent.index >= 2:
                agent.state, agent.failure = AgentState.STARTING, make_failure("CheckpointFailed")

    assert world.step == step + 20
    assert condition(world, ConditionType.RESCALING).message == (
        "Pods of the edited spec are to replace those that train: The agent of pod tiny-2 starts "
        "its workers. The last ones failed: A peer was lost."
    )
    assert world.status.restarts.count == 0

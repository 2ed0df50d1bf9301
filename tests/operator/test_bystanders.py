"""Pods that fail beside a group that goes on: of an edited template, of a rescale, and spares."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.status import RunState
from modelscaling.exit_code import ExitCode
from modelscaling.protocol import AgentState
from modelscaling_operator.action import CreatePods
from modelscaling_operator.announcement import announcements
from modelscaling_operator.observation import Obstacle, PodPhase
from tests.operator.runs import CHECKPOINT, condition, state, trained_world
from tests.operator.world import RUN, World, make_failure

if TYPE_CHECKING:
    from modelscaling_operator.announcement import Announcement

OTHER_IMAGE = {"spec": {"containers": [{"name": "trainer", "image": "trainer:2"}]}}
OBSTACLE = Obstacle(reason=Reason.POD_CANNOT_START, message="0/3 nodes are available")
MINUTES_S = 300
TRY_S = 60
_LONG = 10_000

FAILURES = pytest.mark.parametrize(
    "code",
    [
        pytest.param(ExitCode.CRASHED, id="crash"),
        pytest.param(ExitCode.CONFIGURATION, id="fatal"),
    ],
)


def long_run(**changes: Any) -> World:
    world = trained_world(**changes)
    world.group.total_steps = _LONG
    return world


def edit(world: World, **changes: Any) -> None:
    world.edit(**{"replicas": 2, "checkpoint": CHECKPOINT, **changes})


def fail_beside(world: World, code: ExitCode) -> None:
    """End the pods beside the group as soon as they have an agent."""
    assert world.status.group is not None
    inside = {*world.status.group.pods, *world.status.group.leaving}
    for pod in list(world.pods.values()):
        if pod.uid not in inside and pod.uid in world.agents:
            failure = make_failure("NoData", code) if code is ExitCode.CONFIGURATION else None
            world.end(pod, code, failure=failure)


def pass_minutes(world: World, code: ExitCode | None = None) -> list[Announcement]:
    """Let new pods fail for a few minutes; return the Events."""
    told: list[Announcement] = []
    for _ in range(MINUTES_S // 5):
        before = world.status
        told += announcements(before, world.tick(seconds=5).status)
        if code is not None:
            fail_beside(world, code)
    return told


def completes(world: World) -> None:
    world.group.total_steps = world.step + 3
    for _ in range(6):
        world.tick()
    assert state(world) is RunState.COMPLETE
    assert world.status.restarts.count == 0


@FAILURES
@pytest.mark.parametrize(
    ("edited", "change"),
    [
        pytest.param(
            {"template": OTHER_IMAGE},
            "Pods of the edited spec are to replace those that train",
            id="template",
        ),
        pytest.param(
            {"template": OTHER_IMAGE, "checkpoint": None},
            "Pods of the edited spec are to replace those that train",
            id="template and volume",
        ),
        pytest.param(
            {"replicas": 4},
            "The group changes from dp2 to dp4",
            id="scale-up",
        ),
        pytest.param(
            {"replicas": 4, "elastic": {"minReplicas": 1}},
            "The group changes from dp2 to dp4",
            id="elastic scale-up",
        ),
    ],
)
def test_new_pods_that_fail_leave_the_group_training(
    edited: dict[str, Any], change: str, code: ExitCode
) -> None:
    world = long_run(maxRestarts=0)
    group, step, births = world.status.group, world.step, world.births
    edit(world, maxRestarts=0, **edited)
    told = pass_minutes(world, code)

    assert world.step == step + MINUTES_S // 5
    assert state(world) is RunState.RESCALING
    rescaling = condition(world, ConditionType.RESCALING)
    assert rescaling.reason == Reason.NEWCOMER_FAILED
    assert rescaling.message.startswith(f"{change}: pod tiny-")
    assert rescaling.message.endswith("The next one is tried 60 s later.")
    assert ("NoData" in rescaling.message) is (code is ExitCode.CONFIGURATION)
    assert [event.reason for event in told if event.warning] == [Reason.NEWCOMER_FAILED]
    assert 2 * 4 <= world.births - births <= 2 * (MINUTES_S // TRY_S + 1)
    assert world.status.restarts.count == 0

    edit(world, maxRestarts=0)
    world.tick()
    world.tick()

    assert sorted(world.pods) == ["tiny-0", "tiny-1"]
    assert state(world) is RunState.RUNNING
    assert world.status.group is not None
    assert group is not None
    assert world.status.group.generation == group.generation
    completes(world)


@FAILURES
def test_a_template_that_is_mended_is_tried_at_once(code: ExitCode) -> None:
    world = long_run(maxRestarts=0)
    edit(world, maxRestarts=0, template=OTHER_IMAGE)
    for _ in range(3):
        world.tick()
        fail_beside(world, code)
    mended = {"spec": {"containers": [{"name": "trainer", "image": "trainer:3"}]}}
    edit(world, maxRestarts=0, template=mended)
    world.tick()

    assert CreatePods(indexes=(4, 5), image="trainer:3") in world.actions

    for _ in range(15):
        world.tick()

    assert state(world) is RunState.RUNNING
    assert {pod.image for pod in world.pods.values()} == {"trainer:3"}
    completes(world)


@FAILURES
def test_a_spare_that_fails_is_told_of_and_tried_again_after_a_while(code: ExitCode) -> None:
    world = long_run(maxRestarts=0, elastic={"spares": 1})
    (spare,) = (pod.index for pod in world.pods.values() if pod.index not in world.members())
    world.tick()
    world.crash(spare, code)
    births = world.births
    for _ in range(TRY_S - 2):
        world.tick()

    assert world.births == births
    assert state(world) is RunState.RUNNING
    running = condition(world, ConditionType.RUNNING)
    assert running.message.startswith(
        "2 pods train on the mesh dp2. A spare failed: pod tiny-2 ended with exit code"
    )

    for _ in range(5):
        world.tick()

    assert world.births == births + 1
    assert [pod.is_spare for pod in world.live_pods()] == [False, False, True]
    assert condition(world, ConditionType.RUNNING).message == "2 pods train on the mesh dp2."
    completes(world)


@FAILURES
def test_a_spare_that_fails_again_and_again_harms_nobody(code: ExitCode) -> None:
    world = long_run(maxRestarts=0)
    edit(world, maxRestarts=0, elastic={"spares": 2})
    told = pass_minutes(world, code)

    assert told == []
    assert state(world) is RunState.RUNNING
    completes(world)


def test_one_that_dies_before_it_can_say_anything_is_known_by_its_age() -> None:
    world = long_run(maxRestarts=0)
    edit(world, maxRestarts=0, replicas=4)
    for _ in range(20):
        world.tick()
        for pod in list(world.pods.values()):
            if pod.phase is PodPhase.RUNNING and pod.uid not in world.agents:
                world.end(pod, ExitCode.CRASHED)

    assert (world.status.restarts.count, world.births) == (0, 4)
    assert state(world) is RunState.RESCALING


def test_a_member_that_was_done_without_before_its_kubelet_said_why_is_counted() -> None:
    world = long_run(elastic={"minReplicas": 1})
    world.kill(1)
    for _ in range(12):
        world.tick()
    assert world.members() == [0]

    world.crash(1)
    world.tick()

    assert world.status.restarts.count == 1
    assert any(isinstance(action, CreatePods) for action in world.actions)


@FAILURES
def test_what_failed_beside_the_group_is_not_held_against_the_run_once_that_breaks(
    code: ExitCode,
) -> None:
    world = long_run(maxRestarts=0)
    edit(world, maxRestarts=0, template=OTHER_IMAGE)
    for _ in range(4):
        world.tick()
        fail_beside(world, code)
    assert [pod.phase for pod in world.pods.values()].count(PodPhase.FAILED) == 2

    world.vanish(1)
    world.tick(act=False)  # they are still there when the group is known to be broken
    for _ in range(15):
        world.tick()

    assert state(world) is RunState.RUNNING
    assert {pod.image for pod in world.pods.values()} == {"trainer:2"}
    assert world.status.restarts.count == 0


@FAILURES
def test_the_edit_of_a_run_that_lost_a_pod_may_fail_again_and_again_and_be_taken_back(
    code: ExitCode,
) -> None:
    world = long_run(maxRestarts=0)
    edit(world, maxRestarts=0, template=OTHER_IMAGE)
    world.tick()
    world.lose_node(1)
    pass_minutes(world, code)
    running = condition(world, ConditionType.RUNNING)

    assert running.reason == Reason.NEWCOMER_FAILED
    assert world.status.restarts.count == 0

    edit(world, maxRestarts=0)
    for _ in range(8):
        world.tick()

    assert state(world) is RunState.RUNNING
    assert {pod.image for pod in world.pods.values()} == {"trainer:1"}
    completes(world)


def test_a_pod_that_its_node_refuses_was_no_member_however_old_it_is() -> None:
    elastic = {"minReplicas": 1}
    world = long_run(maxRestarts=0, elastic=elastic)
    edit(world, maxRestarts=0, elastic=elastic, replicas=4)
    world.tick()
    newcomer = world.pods["tiny-2"]
    world.pods["tiny-2"] = replace(newcomer, phase=PodPhase.PENDING, obstacle=OBSTACLE)
    world.lose_node(1)
    world.tick()
    world.tick()
    assert world.status.group is not None
    assert newcomer.created < world.status.group.decided_time

    world.end(newcomer, -1)
    world.tick()

    assert world.pods["tiny-2"].phase is PodPhase.FAILED
    assert world.status.restarts.count == 0


def test_one_whose_agent_is_about_to_end_is_waited_for() -> None:
    world = long_run()
    edit(world, replicas=4)
    world.tick()
    world.tick(act=False)
    for index in (2, 3):
        agent = world.agents[world.pods[RUN.pod_name(index)].uid]
        agent.state = AgentState.STOPPING
        agent.failure = make_failure("NoData", ExitCode.CONFIGURATION)
    births = world.births
    for _ in range(3):
        world.tick()

    assert world.births == births
    assert state(world) is RunState.RESCALING

    world.vanish(1)
    world.tick(act=False)
    for index in (2, 3):
        world.end(world.pods[RUN.pod_name(index)], ExitCode.CONFIGURATION)
    for _ in range(15):
        world.tick()

    assert (state(world), world.status.restarts.count) == (RunState.RUNNING, 0)

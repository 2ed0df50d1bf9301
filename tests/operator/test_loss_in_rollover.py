"""Pods that are lost while those of an edited spec are to replace them, and do not start."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.status import RunState
from modelscaling.protocol import StopMode
from modelscaling_operator.action import Assign, Stop
from modelscaling_operator.observation import Obstacle, PodPhase
from tests.operator.runs import CHECKPOINT, condition, state, trained_world

if TYPE_CHECKING:
    from tests.operator.world import World

OTHER_IMAGE = {"spec": {"containers": [{"name": "trainer", "image": "trainer:2"}]}}
_SPARE = {"elastic": {"spares": 1}}
_FEWER = {"elastic": {"minReplicas": 1}}
_OBSTACLE = Obstacle(reason=Reason.POD_CANNOT_START, message="ErrImagePull")


def edit(world: World, **changes: Any) -> None:
    world.edit(**{"replicas": 2, "checkpoint": CHECKPOINT, **changes})


def hindered_world(edited: dict[str, Any], **changes: Any) -> World:
    """A run that trains in old pods, as those of an edit do not start."""
    world = trained_world(**changes)
    edit(world, **{**changes, **edited})
    world.tick()
    new = [pod for pod in world.pods.values() if pod.uid not in world.agents]
    assert new
    for pod in new:
        world.pods[pod.name] = replace(
            pod, phase=PodPhase.PENDING, address=None, obstacle=_OBSTACLE
        )
    run(world, 5)
    return world


def let_start(world: World) -> None:
    world.pods = {name: replace(pod, obstacle=None) for name, pod in world.pods.items()}


def run(world: World, ticks: int) -> list[object]:
    done: list[object] = []
    for _ in range(ticks):
        world.tick()
        done += world.actions
    return done


@pytest.mark.parametrize("checkpoint", [CHECKPOINT, None])
@pytest.mark.parametrize(
    ("elastic", "members"),
    [pytest.param(_FEWER, [0], id="elastic"), pytest.param(_SPARE, [0, 2], id="spare")],
)
def test_old_pods_go_on_without_the_lost_one_and_the_new_ones_still_replace_them(
    elastic: dict[str, Any], members: list[int], checkpoint: dict[str, Any] | None
) -> None:
    world = hindered_world({"template": OTHER_IMAGE}, checkpoint=checkpoint, **elastic)
    step = world.step
    world.lose_node(1)
    world.tick()

    assert world.members() == members
    assert world.step == step + 1

    run(world, 20)

    assert not any(pod.is_spare for pod in world.live_pods())

    assert world.step == step + 21
    assert state(world) is RunState.RESCALING
    assert condition(world, ConditionType.RESCALING).message == (
        "Pods of the edited spec are to replace those that train: ErrImagePull"
    )

    let_start(world)
    run(world, 15)

    assert state(world) is RunState.RUNNING
    assert {pod.image for pod in world.pods.values()} == {"trainer:2"}
    assert len(world.pods) == 2 + elastic["elastic"].get("spares", 0)
    assert [(record.cause, record.lost_steps) for record in world.status.rescales] == [
        ("NodeLost", 0),
        ("TemplateChanged", 0),
    ]
    assert (world.status.restarts.count, world.group.losses) == (0, 0)


def test_an_old_spare_stays_until_the_new_group_trains() -> None:
    world = hindered_world({"template": OTHER_IMAGE}, checkpoint=None, **_SPARE)
    spare = world.pods["tiny-2"]
    let_start(world)
    for _ in range(8):
        world.deaf.add(world.pods["tiny-3"].uid)
        world.tick()

    group = world.status.group
    assert group is not None
    assert (group.cause, group.trained) == ("TemplateChanged", False)
    assert spare.name in world.pods

    run(world, 8)

    assert spare.uid not in {pod.uid for pod in world.pods.values()}
    assert len(world.pods) == 3


def test_an_old_spare_goes_on_alone_from_the_checkpoint() -> None:
    world = hindered_world({"template": OTHER_IMAGE}, replicas=1, **_SPARE)
    world.crash(0)
    run(world, 3)

    assert world.members() == [1]
    assert state(world) is RunState.RESCALING


def test_old_pods_that_form_again_are_not_told_to_be_those_of_the_edit() -> None:
    world = hindered_world({"template": OTHER_IMAGE})
    for agent in world.agents.values():
        agent.generation = 4  # a status that was restored from a backup is behind
    run(world, 3)

    assert world.status.group is not None
    assert (world.status.group.generation, world.status.group.cause) == (5, "SettingsChanged")


def test_without_a_spare_the_run_waits_for_the_new_pods_or_for_the_edit_to_be_taken_back() -> None:
    world = hindered_world({"template": OTHER_IMAGE})
    world.lose_node(1)
    step = world.step

    assert not any(isinstance(action, Assign) for action in run(world, 20))
    assert world.step == step

    edit(world)
    run(world, 8)

    assert state(world) is RunState.RUNNING
    assert {pod.image for pod in world.pods.values()} == {"trainer:1"}


@pytest.mark.parametrize("elastic", [_FEWER, _SPARE])
def test_old_pods_of_other_processes_than_the_plan_wait(elastic: dict[str, Any]) -> None:
    world = hindered_world({"processesPerReplica": 2}, **elastic)
    world.lose_node(1)

    assert not any(isinstance(action, Assign) for action in run(world, 20))

    let_start(world)
    run(world, 10)

    assert state(world) is RunState.RUNNING
    assert {pod.processes for pod in world.pods.values()} == {2}


@pytest.mark.parametrize(
    ("edited", "elastic", "members", "mesh"),
    [
        pytest.param({"replicas": 4}, _SPARE, [0, 2], "dp2", id="more replicas, a spare"),
        pytest.param({"replicas": 4}, _FEWER, [0], "single", id="more replicas, elastic"),
        pytest.param({"replicas": 1}, {}, [0], "single", id="fewer replicas"),
        pytest.param(
            {"parallelism": {"strategy": "Custom", "dataShard": 2}},
            _SPARE,
            [0, 2],
            "fsdp2",
            id="another mesh",
        ),
    ],
)
def test_what_else_was_edited_holds_for_the_old_pods(
    edited: dict[str, Any], elastic: dict[str, Any], members: list[int], mesh: str
) -> None:
    world = hindered_world({"template": OTHER_IMAGE, **edited}, **elastic)
    world.lose_node(1)
    run(world, 3)

    assert world.status.group is not None
    assert (world.members(), world.status.group.mesh) == (members, mesh)

    let_start(world)
    run(world, 15)

    assert state(world) is RunState.RUNNING
    assert {pod.image for pod in world.pods.values()} == {"trainer:2"}
    assert [record.cause for record in world.status.rescales] == ["NodeLost", "TemplateChanged"]


def test_a_mesh_that_fits_no_old_pods_is_not_tried_with_them() -> None:
    sharded = {"parallelism": {"strategy": "Custom", "dataReplicate": 1, "dataShard": 2}}
    world = hindered_world({"template": OTHER_IMAGE, **sharded}, **_FEWER)
    world.lose_node(1)

    assert not any(isinstance(action, Assign) for action in run(world, 10))


def test_the_old_pods_are_not_told_to_save_while_they_still_meet() -> None:
    world = trained_world()
    edit(world, training__learningRate="1e-4")
    first = world.pods["tiny-0"].uid
    for ticks in range(6):
        world.deaf.add(first)
        if ticks == 1:
            edit(world, training__learningRate="1e-4", template=OTHER_IMAGE)
        world.tick()

        assert not any(isinstance(action, Stop) for action in world.actions)

    stops = [action for action in run(world, 15) if isinstance(action, Stop)]

    assert {stop.mode for stop in stops} == {StopMode.SUSPEND}
    assert state(world) is RunState.RUNNING
    assert [(record.cause, record.lost_steps) for record in world.status.rescales] == [
        ("SettingsChanged", 0),
        ("TemplateChanged", 0),
    ]

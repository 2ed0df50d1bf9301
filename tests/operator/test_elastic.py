"""Runs that do with fewer pods than they wish for, and grow back."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.status import ConditionStatus, RunState
from modelscaling.protocol import AgentState
from modelscaling_operator.action import Assign, CreatePods
from modelscaling_operator.observation import Obstacle, PodPhase
from tests.operator.runs import CHECKPOINT, condition, make_world, state, trained_world
from tests.operator.world_loop import WorldLoop

if TYPE_CHECKING:
    from tests.operator.world import World

_ELASTIC = {"minReplicas": 1, "patienceSeconds": 60}


def run(world: World, ticks: int) -> list[object]:
    """Tick, and return all that was done."""
    done: list[object] = []
    for _ in range(ticks):
        world.tick()
        done += world.actions
    return done


def edit(world: World, **changes: Any) -> None:
    world.edit(**{"replicas": 2, "checkpoint": CHECKPOINT, **changes})


def test_survivors_go_on_at_once_at_the_smaller_size_and_grow_back() -> None:
    world = trained_world(replicas=2, elastic=_ELASTIC)
    step = world.step
    world.lose_node(1)

    world.tick()

    assert any(isinstance(action, CreatePods) for action in world.actions)
    assert any(isinstance(action, Assign) for action in world.actions)
    assert world.members() == [0]
    assert world.step == step + 1

    world.tick()

    assert state(world) is RunState.RESCALING
    rescaling = condition(world, ConditionType.RESCALING)
    assert rescaling.message.startswith("The group changes from single to dp2: ")
    assert condition(world, ConditionType.RUNNING).status is ConditionStatus.TRUE

    run(world, 5)

    assert state(world) is RunState.RUNNING
    assert world.members() == [0, 2]
    assert [(r.cause, r.from_, r.to) for r in world.status.rescales] == [
        ("NodeLost", "dp2", "single"),
        ("PodsChanged", "single", "dp2"),
    ]


def test_a_crashed_pod_delays_its_survivors_not_at_all() -> None:
    world = trained_world(replicas=2, elastic=_ELASTIC)
    for _ in range(4):
        while [a.state for a in world.agents.values()] != [AgentState.TRAINING] * 2:
            world.tick(seconds=0.25)
        world.crash(world.live_pods()[-1].index)
        step = world.step
        world.tick(seconds=0.25)

        assert world.step == step + 1


def test_the_largest_legal_size_is_taken() -> None:
    """With a batch of 8 samples, three pods of one process have no mesh."""
    world = trained_world(replicas=4, elastic=_ELASTIC)
    world.lose_node(3)
    world.tick()

    assert world.members() == [0, 1]


def test_a_survivor_that_has_no_place_at_the_legal_size_hands_over_what_it_holds() -> None:
    world = trained_world(
        replicas=4, elastic=_ELASTIC, parallelism={"strategy": "Custom", "dataReplicate": 2}
    )
    world.lose_node(3)
    world.tick()
    (assign,) = (action for action in world.actions if isinstance(action, Assign))

    assert [member.index for member in assign.assignment.members] == [0, 1]
    assert [member.index for member in assign.assignment.leaving] == [2]

    run(world, 8)

    assert state(world) is RunState.RUNNING
    assert len(world.pods) == 4


def test_below_the_fewest_the_survivors_wait() -> None:
    world = trained_world(replicas=4, elastic={"minReplicas": 3})
    world.lose_node(3)
    world.tick()

    assert not any(isinstance(action, Assign) for action in world.actions)
    assert state(world) is RunState.RESTARTING

    run(world, 5)

    assert world.members() == [0, 1, 2, 4]


def test_a_run_that_is_not_elastic_waits_for_the_replacement() -> None:
    world = trained_world(replicas=2)
    world.lose_node(1)

    assert not any(isinstance(action, Assign) for action in run(world, 2))


def test_a_rescale_that_finds_no_room_leaves_the_old_group_training_and_says_why() -> None:
    world = trained_world(replicas=2)
    world.room = 2
    edit(world, replicas=4)
    run(world, 2)
    for name in ("tiny-2", "tiny-3"):
        world.pods[name] = replace(
            world.pods[name],
            obstacle=Obstacle(reason=Reason.UNSCHEDULABLE, message="Insufficient cpu"),
        )
    step = world.step
    run(world, 80)

    assert world.step == step + 80
    assert state(world) is RunState.RESCALING
    rescaling = condition(world, ConditionType.RESCALING)
    assert rescaling.reason == Reason.UNSCHEDULABLE
    assert rescaling.message == "The group changes from dp2 to dp4: Insufficient cpu"
    assert world.status.observed_generation == 2

    world.room = None
    for name in ("tiny-2", "tiny-3"):
        world.pods[name] = replace(world.pods[name], obstacle=None)
    run(world, 5)

    assert (state(world), world.members()) == (RunState.RUNNING, [0, 1, 2, 3])


def test_scaling_back_while_pods_are_awaited_deletes_them_and_changes_nothing_else() -> None:
    world = trained_world(replicas=2)
    world.room = 2
    edit(world, replicas=4)
    run(world, 3)
    edit(world, replicas=2)
    run(world, 3)

    assert sorted(world.pods) == ["tiny-0", "tiny-1"]
    assert world.status.group is not None
    assert world.status.group.generation == 1
    assert (state(world), world.status.rescales) == (RunState.RUNNING, ())


def test_after_its_patience_an_elastic_run_grows_to_those_that_have_come() -> None:
    world = trained_world(replicas=1, elastic=_ELASTIC)
    world.room = 2
    edit(world, replicas=4, elastic=_ELASTIC)
    begun = world.now
    while world.members() != [0, 1]:
        world.tick()

    assert timedelta(seconds=59) <= world.now - begun <= timedelta(seconds=63)
    assert state(world) is RunState.RESCALING

    world.room = None
    run(world, 5)

    assert (state(world), world.members()) == (RunState.RUNNING, [0, 1, 2, 3])
    assert [(r.cause, r.to) for r in world.status.rescales] == [
        ("ReplicasChanged", "dp2"),
        ("PodsChanged", "dp4"),
    ]


def test_an_elastic_run_begins_with_those_that_have_come_after_its_patience() -> None:
    world = make_world(replicas=2, elastic={"minReplicas": 1, "patienceSeconds": 20})
    world.room = 1
    run(world, 15)

    assert world.status.group is None

    run(world, 15)

    assert state(world) is RunState.RESCALING
    assert world.members() == [0]


def test_a_group_that_broke_while_more_pods_were_awaited_goes_on_at_its_own_size() -> None:
    world = trained_world(replicas=2)
    world.room = 2
    edit(world, replicas=4)
    run(world, 3)
    world.give_up()
    run(world, 3)

    assert world.members() == [0, 1]
    assert condition(world, ConditionType.RUNNING).status is ConditionStatus.TRUE


def test_the_last_of_two_edits_wins() -> None:
    world = trained_world(replicas=2)
    edit(world, replicas=4)
    run(world, 2)
    edit(world, replicas=4, parallelism={"strategy": "Custom", "dataShard": 4})
    run(world, 8)

    assert world.status.group is not None
    assert (world.status.group.generation, world.status.group.mesh) == (2, "fsdp4")
    assert len(world.status.rescales) == 1


def test_an_edit_while_a_group_forms_makes_the_next_number_at_once() -> None:
    world = trained_world(replicas=2)
    edit(world, training__learningRate="1e-4")
    world.tick(act=False)
    edit(world, training__learningRate="1e-3")
    run(world, 3)

    assert world.status.group is not None
    assert (world.status.group.generation, world.status.group.cause) == (3, "SettingsChanged")
    assert len(world.status.rescales) == 1


def test_a_spare_takes_the_place_of_a_lost_pod_at_once() -> None:
    world = trained_world(replicas=2, elastic={"spares": 1})
    assert (world.status.replicas, world.status.ready_replicas) == (2, 2)
    step = world.step
    world.lose_node(1)

    world.tick()

    assert world.members() == [0, 2]
    assert world.step == step + 1

    run(world, 5)

    assert sorted(world.pods) == ["tiny-0", "tiny-2", "tiny-3"]
    assert state(world) is RunState.RUNNING


def test_spares_can_be_asked_for_and_given_back_while_the_run_trains() -> None:
    world = trained_world(replicas=2)
    edit(world, elastic={"spares": 2})
    run(world, 5)

    assert len(world.pods) == 4
    assert (state(world), world.status.replicas) == (RunState.RUNNING, 2)

    edit(world, elastic={})
    run(world, 5)

    assert sorted(world.pods) == ["tiny-0", "tiny-1"]
    assert world.status.group is not None
    assert world.status.group.generation == 1


def test_what_autoscalers_compare_counts_pods_that_leave_until_they_have() -> None:
    world = trained_world(replicas=4)
    edit(world, replicas=2)
    world.tick()

    assert world.status.replicas == 4

    run(world, 4)

    assert world.status.replicas == 2


def test_survivors_keep_their_ranks_and_lead() -> None:
    world = trained_world(replicas=2, elastic={"spares": 0})
    world.lose_node(0)
    run(world, 8)
    assert world.members() == [1, 2]

    edit(world, replicas=4)
    run(world, 8)

    assert world.members()[:2] == [1, 2]
    assert sorted(world.members()) == [0, 1, 2, 3]


def test_spares_are_labelled_as_such_once_they_are_warm_and_not_any_more_as_members() -> None:
    world = trained_world(replicas=2, elastic={"spares": 1})
    spare = next(pod for pod in world.pods.values() if pod.uid not in _group_pods(world))

    assert [pod.is_spare for pod in world.pods.values()].count(True) == 1
    assert spare.is_spare

    world.vanish(1)
    run(world, 8)

    assert world.members() == [0, spare.index]
    assert [pod.is_spare for pod in world.live_pods()] == [False, True, False]


@pytest.mark.parametrize(
    ("edited", "replicas"),
    [
        pytest.param({"replicas": 4}, 4, id="scale-up"),
        pytest.param({"template": {"metadata": {"labels": {"team": "a"}}}}, 2, id="template"),
    ],
)
def test_a_pod_that_waits_to_join_is_labelled_as_idle_and_counted_up_to_what_is_wished(
    edited: dict[str, Any], replicas: int
) -> None:
    world = trained_world(replicas=2)
    edit(world, **edited)
    world.tick()
    slow = world.pods["tiny-3"]
    obstacle = Obstacle(reason=Reason.UNSCHEDULABLE, message="Insufficient cpu")
    world.pods["tiny-3"] = replace(slow, phase=PodPhase.PENDING, address=None, obstacle=obstacle)
    run(world, 4)

    assert [pod.name for pod in world.pods.values() if pod.is_spare] == ["tiny-2"]
    assert world.status.replicas == replicas
    assert world.status.ready_replicas == min(replicas, 3)

    world.pods["tiny-3"] = replace(world.pods["tiny-3"], obstacle=None)
    run(world, 10)

    assert not any(pod.is_spare for pod in world.pods.values())
    assert world.status.replicas == world.status.ready_replicas == replicas


def test_a_pod_that_waits_to_join_is_not_counted_as_ready_for_a_member_that_is_not() -> None:
    world = trained_world(replicas=2)
    edit(world, template={"metadata": {"labels": {"team": "a"}}})
    world.tick()
    obstacle = Obstacle(reason=Reason.UNSCHEDULABLE, message="Insufficient cpu")
    slow = world.pods["tiny-3"]
    world.pods["tiny-3"] = replace(slow, phase=PodPhase.PENDING, address=None, obstacle=obstacle)
    run(world, 2)
    world.cut_off(1)
    run(world, 2)

    assert (world.status.replicas, world.status.ready_replicas) == (2, 1)


def _group_pods(world: World) -> tuple[str, ...]:
    assert world.status.group is not None
    return world.status.group.pods


def test_an_autoscaler_does_not_select_spares() -> None:
    world = trained_world(elastic={"spares": 1})

    assert world.status.selector == "modelscaling.dev/name=tiny,modelscaling.dev/role notin (spare)"


async def test_a_label_is_written_to_the_very_pod_that_is_meant() -> None:
    world = make_world(elastic={"spares": 1})
    async with WorldLoop(world=world) as operator:
        while not any(pod.is_spare for pod in world.pods.values()):
            await operator.tick()
        writes = operator.life.writes
        for _ in range(3):
            await operator.tick()

    assert [write for write in writes if write.startswith("apply pods")] == ["apply pods tiny-2 "]

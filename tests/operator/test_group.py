from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.status import ConditionStatus, RunState
from modelscaling.protocol import AgentState, AgentStatus
from modelscaling_operator.action import Assign, CreatePods, Stop
from tests.operator.runs import CHECKPOINT, condition, state, trained_world


def test_scaling_up_lets_the_old_group_train_until_the_new_pods_are_warm() -> None:
    world = trained_world()
    world.edit(replicas=4, checkpoint=CHECKPOINT)

    world.tick()

    assert world.actions == [CreatePods(indexes=(2, 3), image="trainer:1")]
    assert state(world) is RunState.RESCALING
    assert condition(world, ConditionType.RUNNING).status is ConditionStatus.TRUE
    rescaling = condition(world, ConditionType.RESCALING)
    assert rescaling.reason == Reason.WAITING_FOR_PODS
    assert rescaling.message == (
        "The group changes from dp2 to dp4: 2 of 4 pods do not run yet: tiny-2 (Pending), "
        "tiny-3 (Pending)."
    )

    for _ in range(8):
        world.tick()

    assert world.states() == [AgentState.TRAINING] * 4
    assert world.status.group is not None
    assert (world.status.group.generation, world.status.group.mesh) == (2, "dp4")
    (record,) = world.status.rescales
    assert (record.cause, record.from_, record.to) == ("ReplicasChanged", "dp2", "dp4")
    assert record.lost_steps == 0


def test_scaling_down_has_the_leavers_hand_over_and_end_by_themselves() -> None:
    world = trained_world(
        replicas=4, checkpoint=None, parallelism={"strategy": "Custom", "dataShard": 4}
    )
    world.edit(replicas=2, parallelism={"strategy": "Custom", "dataShard": 2})
    step = world.step
    seen: list[object] = []
    for _ in range(10):
        world.tick()
        seen += world.actions

    assert isinstance(seen[0], Assign)
    assert [member.index for member in seen[0].assignment.members] == [0, 1]
    assert [member.index for member in seen[0].assignment.leaving] == [2, 3]
    assert [pod.index for pod in seen[0].pods] == [0, 1, 2, 3]
    assert [action for action in seen if isinstance(action, Stop)] == []
    assert sorted(world.pods) == ["tiny-0", "tiny-1"]
    assert world.status.restarts.count == 0
    assert (world.step, world.group.losses) == (step + 10, 0)
    (record,) = world.status.rescales
    assert (record.cause, record.from_, record.to) == ("ReplicasChanged", "fsdp4", "fsdp2")
    assert (record.source, record.lost_steps) == ("Memory", 0)


def test_edited_settings_form_a_new_group_of_the_same_pods() -> None:
    world = trained_world()
    world.edit(replicas=2, checkpoint=CHECKPOINT, training__learningRate="1e-4")
    for _ in range(5):
        world.tick()

    assert world.status.group is not None
    assert (world.status.group.generation, world.births) == (2, 2)
    assert world.status.rescales[-1].cause == "SettingsChanged"


@pytest.mark.parametrize(
    ("parallelism", "mesh"),
    [
        ({"dataShard": 4}, "fsdp4"),
        ({"dataShard": 2, "context": 2}, "fsdp2×cp2"),
        ({"pipeline": 2}, "pp2×dp2"),
    ],
)
def test_another_mesh_forms_a_new_group_in_the_same_pods(
    parallelism: dict[str, int], mesh: str
) -> None:
    world = trained_world(replicas=4)
    world.edit(replicas=4, checkpoint=CHECKPOINT, parallelism={"strategy": "Custom", **parallelism})
    seen: list[object] = []
    for _ in range(5):
        world.tick()
        seen += world.actions

    (assign,) = seen
    assert isinstance(assign, Assign)
    assert str(assign.assignment.mesh) == mesh
    assert (world.births, world.states()) == (4, [AgentState.TRAINING] * 4)
    (record,) = world.status.rescales
    assert (record.cause, record.from_, record.to) == ("ParallelismChanged", "dp4", mesh)
    assert record.lost_steps == 0


def test_other_replicas_are_the_cause_even_where_the_mesh_changes_its_kind() -> None:
    world = trained_world(replicas=2)
    world.edit(replicas=4, checkpoint=CHECKPOINT, parallelism={"strategy": "Custom", "pipeline": 2})
    for _ in range(10):
        world.tick()

    (record,) = world.status.rescales
    assert (record.cause, record.from_, record.to) == ("ReplicasChanged", "dp2", "pp2×dp2")


@pytest.mark.parametrize(
    ("waited_s", "assigns"),
    [pytest.param(1, False, id="has just begun"), pytest.param(90, True, id="never tells")],
)
def test_a_group_is_not_changed_again_before_it_has_told_what_its_change_cost(
    waited_s: int, *, assigns: bool
) -> None:
    world = trained_world(
        replicas=2, checkpoint=None, parallelism={"strategy": "Custom", "dataShard": 2}
    )
    world.edit(replicas=2, parallelism={"strategy": "Custom", "dataReplicate": 2})
    group = world.status.group
    assert group is not None
    begun = group.model_copy(
        update={"stopped_mesh": "dp2", "recorded_attempt": 0, "decided_time": world.now}
    )
    seen = world.observe()
    silent = {
        uid: answer.model_copy(update={"progress": None})
        for uid, answer in seen.agents.items()
        if isinstance(answer, AgentStatus)
    }
    status = seen.status.model_copy(update={"group": begun})
    world.now += timedelta(seconds=waited_s)

    decision = world.decide_about(replace(seen, status=status, agents=silent))

    assert any(isinstance(action, Assign) for action in decision.actions) is assigns

"""Pods that cannot reach each other, while the operator hears both."""

from __future__ import annotations

import pytest

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.group_status import GroupStatus
from modelscaling.api.status import ModelScalingStatus, RunState
from modelscaling.protocol import AgentState, AgentStatus
from modelscaling_operator.action import CreatePods, DeletePod
from modelscaling_operator.announcement import announcements
from modelscaling_operator.observation import Observation, Silence
from modelscaling_operator.severance import severed_pods
from tests.operator.runs import condition, state, trained_world
from tests.operator.world import BEGIN, RUN, World, make_pod

_SILENCE = Silence(since=BEGIN, message="no answer in time")


def said(
    index: int, *unreachable: int, generation: int = 3, is_ending: bool = False
) -> AgentStatus:
    return AgentStatus(
        run_uid=RUN.uid,
        index=index,
        state=AgentState.STOPPING if is_ending else AgentState.TRAINING,
        generation=generation,
        unreachable=unreachable,
    )


def seen(*answers: AgentStatus | Silence) -> Observation:
    pods = tuple(make_pod(index) for index in range(len(answers)))
    group = GroupStatus(
        generation=3,
        digest="d",
        members=len(pods),
        pods=tuple(pod.uid for pod in pods),
        mesh="dp",
        cause="Started",
        decided_time=BEGIN,
    )
    return Observation(
        run=RUN,
        generation=1,
        status=ModelScalingStatus(group=group),
        pods=pods,
        agents={pod.uid: answer for pod, answer in zip(pods, answers, strict=True)},
    )


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        pytest.param([said(0), said(1)], [], id="all reach each other"),
        pytest.param([said(0, 1), said(1, 0)], [1], id="of two the higher index goes"),
        pytest.param([said(0, 1), said(1)], [1], id="one of them says so"),
        pytest.param([said(0), said(1, 0)], [1], id="the other one says so"),
        pytest.param(
            [said(0), said(1, 2, 3), said(2, 1), said(3, 1)], [1], id="the one that two miss goes"
        ),
        pytest.param(
            [said(0, 2, 3), said(1, 2, 3), said(2, 0, 1), said(3, 0, 1)],
            [2, 3],
            id="two halves: one of them goes",
        ),
        pytest.param(
            [said(0, 1, 2), said(1, 0, 2), said(2, 0, 1)], [1, 2], id="nobody reaches anybody"
        ),
        pytest.param([said(0, 1), _SILENCE], [], id="the operator does not hear it either"),
        pytest.param(
            [said(0, 1, generation=2), said(1)], [], id="who says so speaks of an older group"
        ),
        pytest.param([said(0, 1), said(1, is_ending=True)], [], id="it ends by itself"),
        pytest.param([said(0, 7), said(1)], [], id="it is of no member"),
    ],
)
def test_who_is_given_up(answers: list[AgentStatus | Silence], expected: list[int]) -> None:
    severed = severed_pods(seen(*answers))

    assert sorted(severed) == [f"pod-{index}" for index in expected]


def test_it_is_said_who_cannot_reach_whom() -> None:
    others = range(1, 8)
    observed = seen(said(0, *others), *(said(index) for index in others))

    assert severed_pods(observed)["pod-0"].startswith(
        "pod tiny-0 and tiny-1, tiny-2, tiny-3, tiny-4, tiny-5 and 2 more cannot reach each other, "
        "while the operator hears all of them; pod tiny-0 is replaced. "
    )


def sever_and_look(world: World) -> None:
    world.sever(1, 2)
    world.tick()  # they notice
    world.tick()


def test_one_of_two_pods_that_cannot_reach_each_other_is_replaced_elsewhere() -> None:
    world = trained_world(replicas=4)
    world.pods["tiny-2"] = make_pod(
        2,
        uid=world.pods["tiny-2"].uid,
        revision=world.pods["tiny-2"].revision,
        node="b",
        address=world.pods["tiny-2"].address,
    )
    severed = world.pods["tiny-2"]
    sever_and_look(world)

    assert DeletePod(pod=severed, grace_s=0) in world.actions
    (create,) = (action for action in world.actions if isinstance(action, CreatePods))
    assert (create.indexes, create.avoid_nodes) == ((4,), ("b",))
    assert state(world) is RunState.RESTARTING
    running = condition(world, ConditionType.RUNNING)
    assert running.reason == Reason.PODS_SEVERED
    assert "pod tiny-2 and tiny-1 cannot reach each other" in running.message

    for _ in range(6):
        world.tick()

    assert state(world) is RunState.RUNNING
    assert world.members() == [0, 1, 3, 4]
    assert world.status.rescales[-1].cause == Reason.PODS_SEVERED
    assert world.group.losses == 0
    assert world.status.restarts.count == 1


def test_an_event_says_who_cannot_reach_whom() -> None:
    world = trained_world(replicas=4)
    before = world.status
    sever_and_look(world)

    (told,) = (
        found for found in announcements(before, world.status) if found.reason == Reason.POD_FAILED
    )
    assert told.warning
    assert told.message.startswith("pod tiny-2 and tiny-1 cannot reach each other")


def test_the_others_go_on_without_it_where_the_run_may_shrink() -> None:
    world = trained_world(replicas=4, elastic={"minReplicas": 1})
    world.room = 4
    sever_and_look(world)
    world.tick()

    assert world.status.group is not None
    assert world.status.group.members < 4
    assert 2 not in world.members()
    assert world.status.group.trained


def test_a_network_that_is_broken_everywhere_ends_the_run_by_its_limits() -> None:
    world = trained_world(replicas=2)
    for _ in range(60):
        live = [pod.index for pod in world.live_pods()]
        if len(live) == 2:
            world.sever(*live)
        world.tick()

    failed = condition(world, ConditionType.FAILED)
    assert state(world) is RunState.FAILED
    assert failed.reason == Reason.FAILS_AT_SAME_STEP
    assert "cannot reach each other" in failed.message
    assert world.status.restarts.count == 6

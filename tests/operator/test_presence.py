from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from modelscaling.api.group_status import GroupStatus
from modelscaling.api.status import ModelScalingStatus
from modelscaling.protocol import AgentState, AgentStatus
from modelscaling_operator.observation import Observation, Pod, PodPhase, Silence
from modelscaling_operator.presence import HICCUP_S, KUBELET_S, UNWITNESSED_S, Presence, presences
from tests.operator.world import BEGIN, RUN, make_exit, make_pod

_GROUP = GroupStatus(
    generation=3,
    digest="d",
    members=2,
    pods=("pod-0", "pod-1"),
    mesh="dp2",
    cause="Started",
    decided_time=BEGIN,
)


def says(index: int = 1, **changes: Any) -> AgentStatus:
    values: dict[str, Any] = {"state": AgentState.TRAINING, "generation": 3}
    return AgentStatus(run_uid=RUN.uid, index=index, **{**values, **changes})


def silence(seconds: float = 0, *, refusal: bool = False) -> Silence:
    since = BEGIN - timedelta(seconds=seconds)
    return Silence(since=since, message="no answer in time", is_refusal=refusal)


def presence_of(
    pod: Pod, answer: AgentStatus | Silence | None, peer: AgentStatus | Silence
) -> Presence:
    """Return what is expected of a pod beside a peer of the same group."""
    seen = Observation(
        run=RUN,
        generation=1,
        status=ModelScalingStatus(group=_GROUP),
        pods=(make_pod(0), pod),
        agents={"pod-0": peer, **({pod.uid: answer} if answer else {})},
    )
    return presences(seen, BEGIN)[pod.uid]


_TOLD_TO_END = {"deletion_deadline": BEGIN + timedelta(seconds=60)}
_KILLED_AT_ONCE = {"deletion_deadline": BEGIN + timedelta(seconds=1)}
_OUTSIDE = {"uid": "pod-new"}


@pytest.mark.parametrize(
    ("changes", "answer", "peer", "expected"),
    [
        pytest.param({}, says(), says(0), Presence.ABLE, id="it trains"),
        pytest.param({}, says(state=AgentState.WARM), says(0), Presence.ABLE, id="it is warm"),
        pytest.param(
            {}, says(state=AgentState.STARTING), says(0), Presence.STARTING, id="it starts"
        ),
        pytest.param(
            {"phase": PodPhase.PENDING, "address": None},
            None,
            says(0),
            Presence.STARTING,
            id="it waits for a node",
        ),
        pytest.param(
            {}, says(state=AgentState.STOPPING), says(0), Presence.GOING, id="it saves and ends"
        ),
        pytest.param(
            {}, says(is_leaving=True), says(0), Presence.LEAVING, id="it was told, the watch lags"
        ),
        pytest.param(_TOLD_TO_END, says(), says(0), Presence.LEAVING, id="it is being deleted"),
        pytest.param(
            _KILLED_AT_ONCE, says(), says(0), Presence.GOING, id="deleted with a second of grace"
        ),
        pytest.param(
            _TOLD_TO_END, silence(1), says(0), Presence.LEAVING, id="deleted, silent for a moment"
        ),
        pytest.param(
            _TOLD_TO_END, silence(HICCUP_S), says(0), Presence.GOING, id="deleted, silent for long"
        ),
        pytest.param(
            {"phase": PodPhase.FAILED, "exit": make_exit(1)},
            None,
            says(0),
            Presence.ENDED,
            id="it failed",
        ),
        pytest.param(
            {}, silence(300), says(0), Presence.STARTING, id="silent, but its peer hears it"
        ),
        pytest.param(
            {}, silence(1), says(0, lost=(1,)), Presence.LOST, id="nobody hears it, two witnesses"
        ),
        pytest.param(
            {},
            silence(0.3),
            says(0, lost=(1,)),
            Presence.STARTING,
            id="its peer lost it, the operator was busy for a moment",
        ),
        pytest.param(
            {}, says(), says(0, lost=(1,)), Presence.ABLE, id="its peer lost it, it answers"
        ),
        pytest.param(
            {},
            silence(300),
            says(0, lost=(1,), generation=2),
            Presence.STARTING,
            id="missed by an agent that speaks of an older group",
        ),
        pytest.param(
            {}, silence(300), silence(300), Presence.STARTING, id="the operator hears nobody"
        ),
        pytest.param(
            {},
            silence(refusal=True),
            says(0, lost=(1,)),
            Presence.GOING,
            id="its machine refuses, the kubelet will tell",
        ),
        pytest.param(
            {},
            silence(KUBELET_S, refusal=True),
            says(0, lost=(1,)),
            Presence.LOST,
            id="its machine refuses, the kubelet says nothing",
        ),
        pytest.param(
            _OUTSIDE,
            silence(),
            says(0, lost=(1,)),
            Presence.STARTING,
            id="another pod of a lost member's index",
        ),
        pytest.param(
            _OUTSIDE, silence(UNWITNESSED_S), says(0), Presence.LOST, id="an outsider long unheard"
        ),
        pytest.param(
            _OUTSIDE,
            silence(300, refusal=True),
            says(0),
            Presence.STARTING,
            id="an outsider that still starts",
        ),
        pytest.param(
            {**_OUTSIDE, "is_ready": True},
            silence(UNWITNESSED_S, refusal=True),
            says(0),
            Presence.LOST,
            id="an outsider that was ready, its kubelet says nothing",
        ),
        pytest.param(
            _OUTSIDE,
            silence(300),
            silence(300),
            Presence.STARTING,
            id="an outsider, the operator hears nobody",
        ),
    ],
)
def test_what_is_expected_of_a_pod(
    changes: dict[str, Any],
    answer: AgentStatus | Silence | None,
    peer: AgentStatus | Silence,
    expected: Presence,
) -> None:
    assert presence_of(make_pod(1, **changes), answer, peer) is expected


def _two_nodes(*, first_silent: float | None, broken: str = "") -> dict[str, Presence]:
    """Return what is expected of pods 1 and 2, silent on a node of their own, beside pod 0 that has
    lost 1 alone; pod 3 is on the node as well and is heard unless it is `first_silent`.
    """
    pods = (make_pod(0, node="a"), *(make_pod(index, node="b") for index in (1, 2, 3)))
    group = _GROUP.model_copy(
        update={"members": 4, "pods": tuple(pod.uid for pod in pods), "broken": broken}
    )
    answers: dict[str, AgentStatus | Silence] = {"pod-0": says(0, lost=(1,))}
    answers |= {"pod-1": silence(1), "pod-2": silence(1)}
    answers["pod-3"] = says(3) if first_silent is None else silence(first_silent)
    seen = Observation(
        run=RUN,
        generation=1,
        status=ModelScalingStatus(group=group),
        pods=pods,
        agents=answers,
    )
    return dict(presences(seen, BEGIN))


def test_who_was_lost_with_a_node_is_given_up_with_it() -> None:
    expected = _two_nodes(first_silent=1)

    assert [expected[f"pod-{index}"] for index in (1, 2, 3)] == [Presence.LOST] * 3


def test_a_node_on_which_somebody_is_heard_is_not_lost() -> None:
    expected = _two_nodes(first_silent=None)

    assert (expected["pod-1"], expected["pod-2"]) == (Presence.LOST, Presence.STARTING)


def test_members_of_a_group_that_a_lost_node_broke_up_are_given_up_after_a_while() -> None:
    seen_silent = silence(UNWITNESSED_S)
    lost = _GROUP.model_copy(update={"broken": "NodeLost"})
    seen = Observation(
        run=RUN,
        generation=1,
        status=ModelScalingStatus(group=lost),
        pods=(make_pod(0), make_pod(1)),
        agents={"pod-0": says(0), "pod-1": seen_silent},
    )

    assert presences(seen, BEGIN)["pod-1"] is Presence.LOST

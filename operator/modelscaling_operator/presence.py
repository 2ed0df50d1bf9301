"""What can be expected of each pod: whether it can be in the next group, leaves, or is gone.

Two witnesses are needed to give a silent member up: the operator, which gets no answer, and an
agent of the same group that the operator does hear. Were the operator's word enough, one that is
itself cut off would delete every pod of every run. Members are in touch with the first member
alone, so who was lost with it has no witness of its own: it is given up with its node, or after a
while. So is a pod outside the group, which holds nothing, if the operator hears any of the run.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, TypeGuard

from modelscaling.api.conditions import Reason
from modelscaling.protocol import AgentState, AgentStatus
from modelscaling_operator.observation import Silence
from modelscaling_operator.other_data import other_data
from modelscaling_operator.severance import severed_pods

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from modelscaling_operator.observation import Observation, Pod

HICCUP_S = 10
"""Seconds without an answer in which an agent that nobody else misses is still counted on."""
CONFIRMED_S = 0.5
"""Seconds without an answer that confirm what its peers say of a pod; more than one hurried
question takes, so that a moment in which the operator itself was busy takes no pod away."""
KUBELET_S = 10
"""Seconds in which the kubelet says how a pod ended whose machine refuses connections to it."""
HAND_OVER_S = 2
"""Seconds that a pod must have left to hand over what it holds. One that is killed sooner, as by
`kubectl delete --now`, would break the group that is formed with it."""
UNWITNESSED_S = 20
"""Seconds without any answer, save the refusals of a pod that starts, after which a pod that nobody
is in touch with is given up."""

_ABLE = frozenset({AgentState.WARM, AgentState.FORMING, AgentState.TRAINING})
_ENDING = frozenset({AgentState.STOPPING, AgentState.ENDED})


class Presence(StrEnum):
    """What can be expected of a pod."""

    ABLE = "Able"
    """Its agent can follow into the next group."""
    STARTING = "Starting"
    """It is awaited: to be scheduled, to start, to answer again, or to see the group's data."""
    LEAVING = "Leaving"
    """It was told to end, and can hand over what it holds before it does."""
    GOING = "Going"
    """Nothing is to be had of it any more, and it ends by itself."""
    LOST = "Lost"
    """Nobody hears it."""
    SEVERED = "Severed"
    """Others of its group cannot reach it; it is given up although the operator hears it."""
    ENDED = "Ended"


GIVEN_UP = frozenset({Presence.LOST, Presence.SEVERED})
"""Those that are deleted without waiting for anybody, as their places are taken at once."""


def presences(seen: Observation, now: datetime) -> Mapping[str, Presence]:
    """Return what can be expected of each of the run's own pods, by their UIDs."""
    missed = _missed(seen)
    missed |= _on_their_nodes(missed, seen) | _unwitnessed(seen, now)
    expected = {pod.uid: _presence(pod, seen, now, is_missed=pod.uid in missed) for pod in seen.own}
    waiting = [uid for uid in other_data(seen) if expected[uid] is Presence.ABLE]
    return (
        expected
        | dict.fromkeys(waiting, Presence.STARTING)
        | dict.fromkeys(severed_pods(seen), Presence.SEVERED)
    )


def _missed(seen: Observation) -> frozenset[str]:
    """Return the pods, by UID, that an agent of the present group has lost."""
    group = seen.status.group
    if group is None:
        return frozenset()
    told = [pod for pod in (*seen.members, *seen.leavers) if pod]
    agents = [agent for pod in told if (agent := seen.agent(pod))]
    indexes = {i for agent in agents if agent.generation == group.generation for i in agent.lost}
    return frozenset(pod.uid for pod in told if pod.index in indexes)


def _on_their_nodes(missed: frozenset[str], seen: Observation) -> frozenset[str]:
    """Return the silent pods of nodes of which nothing is heard and a pod is missed."""
    silent = [pod for pod in seen.own if _is_unheard(seen.agents.get(pod.uid))]
    gone = {pod.node for pod in silent if pod.uid in missed and pod.node}
    unheard = {pod.uid for pod in silent}
    gone -= {pod.node for pod in seen.own if pod.uid in seen.agents and pod.uid not in unheard}
    return frozenset(pod.uid for pod in silent if pod.node in gone)


def _unwitnessed(seen: Observation, now: datetime) -> frozenset[str]:
    """Return the pods that have been silent for long and that nobody is in touch with: those
    outside the group, and all of a group that is broken up.
    """
    if all(isinstance(answer, Silence) for answer in seen.agents.values()):
        return frozenset()
    group = seen.status.group
    is_broken_up = group is not None and group.broken == Reason.NODE_LOST
    told = frozenset((*group.pods, *group.leaving) if group and not is_broken_up else ())
    limit = timedelta(seconds=UNWITNESSED_S)
    answers = ((pod, seen.agents.get(pod.uid)) for pod in seen.own if pod.uid not in told)
    return frozenset(
        pod.uid
        for pod, answer in answers
        if isinstance(answer, Silence)
        # A kubelet that is there would say that what was ready has ended.
        and (not answer.is_refusal or pod.is_ready)
        and now >= answer.since + limit
    )


def _is_unheard(answer: AgentStatus | Silence | None) -> TypeGuard[Silence]:
    """Whether not even the pod's machine answers."""
    return isinstance(answer, Silence) and not answer.is_refusal


def _presence(pod: Pod, seen: Observation, now: datetime, *, is_missed: bool) -> Presence:
    answer = seen.agents.get(pod.uid)
    if pod.ended:
        return Presence.ENDED
    if isinstance(answer, AgentStatus):
        return _of_agent(pod, answer, now)
    if isinstance(answer, Silence) and is_missed:
        return _of_missed(answer, now)
    if pod.deletion_deadline is None:
        return Presence.STARTING
    is_hiccup = isinstance(answer, Silence) and now < answer.since + timedelta(seconds=HICCUP_S)
    return Presence.LEAVING if is_hiccup else Presence.GOING


def _of_missed(silence: Silence, now: datetime) -> Presence:
    silent_for = now - silence.since
    if silence.is_refusal and silent_for < timedelta(seconds=KUBELET_S):
        # Its machine is there, and its kubelet knows more than anybody.
        return Presence.GOING
    return Presence.LOST if silent_for >= timedelta(seconds=CONFIRMED_S) else Presence.STARTING


def _of_agent(pod: Pod, agent: AgentStatus, now: datetime) -> Presence:
    deadline = pod.deletion_deadline
    is_killed = deadline is not None and deadline < now + timedelta(seconds=HAND_OVER_S)
    if agent.state in _ENDING or is_killed:
        return Presence.GOING
    if deadline is not None or agent.is_leaving:
        return Presence.LEAVING
    return Presence.ABLE if agent.state in _ABLE else Presence.STARTING

"""What can be expected of each pod: whether it can be in the next group, leaves, or is gone.

Two witnesses are needed to give a silent member up: the operator, which gets no answer, and an
agent of the same group that the operator does hear. Were the operator's word enough, one that is
itself cut off would delete every pod of every run. A pod outside the group holds nothing and has no
peers; it is given up after a while if the operator hears any other pod of the run.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from modelscaling.protocol import AgentState, AgentStatus
from modelscaling_operator.observation import Silence

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

OUTSIDER_S = 20
"""Seconds without any answer, not even a refusal as of a pod that starts, after which a pod outside
the group is given up."""

_ABLE = frozenset({AgentState.WARM, AgentState.FORMING, AgentState.TRAINING})
_ENDING = frozenset({AgentState.STOPPING, AgentState.ENDED})


class Presence(StrEnum):
    """What can be expected of a pod."""

    ABLE = "Able"
    """Its agent can follow into the next group."""
    STARTING = "Starting"
    """It is awaited: to be scheduled, to start, or to answer again."""
    LEAVING = "Leaving"
    """It was told to end, and can hand over what it holds before it does."""
    GOING = "Going"
    """Nothing is to be had of it any more, and it ends by itself."""
    LOST = "Lost"
    """Nobody hears it."""
    ENDED = "Ended"


def presences(seen: Observation, now: datetime) -> Mapping[str, Presence]:
    """Return what can be expected of each of the run's own pods, by their UIDs."""
    missed = _missed(seen) | _overdue_outsiders(seen, now)
    return {pod.uid: _presence(pod, seen, now, is_missed=pod.uid in missed) for pod in seen.own}


def _missed(seen: Observation) -> frozenset[str]:
    """Return the pods, by UID, that an agent of the present group has lost."""
    group = seen.status.group
    if group is None:
        return frozenset()
    told = [pod for pod in (*seen.members, *seen.leavers) if pod]
    agents = [agent for pod in told if (agent := seen.agent(pod))]
    indexes = {i for agent in agents if agent.generation == group.generation for i in agent.lost}
    return frozenset(pod.uid for pod in told if pod.index in indexes)


def _overdue_outsiders(seen: Observation, now: datetime) -> frozenset[str]:
    group = seen.status.group
    told = frozenset((*group.pods, *group.leaving) if group else ())
    silent = {uid: answer for uid, answer in seen.agents.items() if isinstance(answer, Silence)}
    if len(silent) == len(seen.agents):
        return frozenset()
    limit = timedelta(seconds=OUTSIDER_S)
    return frozenset(
        uid
        for uid, silence in silent.items()
        if uid not in told and not silence.is_refusal and now >= silence.since + limit
    )


def _presence(pod: Pod, seen: Observation, now: datetime, *, is_missed: bool) -> Presence:
    answer = seen.agents.get(pod.uid)
    if pod.ended:
        return Presence.ENDED
    if isinstance(answer, AgentStatus):
        return _of_agent(pod, answer)
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


def _of_agent(pod: Pod, agent: AgentStatus) -> Presence:
    if agent.state in _ENDING:
        return Presence.GOING
    if pod.deletion_deadline is not None or agent.is_leaving:
        return Presence.LEAVING
    return Presence.ABLE if agent.state in _ABLE else Presence.STARTING

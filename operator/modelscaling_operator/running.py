"""The condition `Running`: whether the group trains, else what the run waits for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.status import ConditionStatus
from modelscaling.protocol import AgentState, AgentStatus
from modelscaling_operator.failure import describe_exit, is_failed, retry_time
from modelscaling_operator.observation import PodPhase, Silence

if TYPE_CHECKING:
    from datetime import datetime

    from modelscaling_operator.observation import Observation, Obstacle
    from modelscaling_operator.wish import Wish

HICCUP_S = 10
"""Seconds without an answer in which a group that trained is still taken to train."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What the condition says."""

    holds: bool
    reason: Reason
    message: str


def group_trains(seen: Observation, now: datetime) -> bool:
    """Whether the present group trains, as far as its agents answer."""
    group = seen.status.group
    if group is None:
        return False
    pods = [pod for pod in seen.own if pod.live]
    members = [
        agent
        for agent in (seen.agent(pod) for pod in pods)
        if agent is not None and agent.generation == group.generation
    ]
    if any(agent.state is AgentState.WARM for agent in members):
        return False
    if any(agent.state is AgentState.TRAINING for agent in members):
        return True
    hiccups = (seen.agents.get(pod.uid) for pod in pods)
    return _trained_until_now(seen) and any(
        isinstance(answer, Silence) and now < answer.since + timedelta(seconds=HICCUP_S)
        for answer in hiccups
    )


def describe_running(
    wish: Wish, seen: Observation, now: datetime, *, foreign: Obstacle | None
) -> Running:
    """Return the condition; what stands most in the way is told first."""
    group = seen.status.group
    waiting = _waits_for(wish, seen, now, foreign)
    if group is not None and group_trains(seen, now):
        message = f"{group.members} pods train on the mesh {group.mesh}."
        if waiting is not None:
            message += f" Changing to {wish.plan.mesh}: {waiting.message}"
        return Running(holds=True, reason=Reason.TRAINING, message=message)
    return waiting or Running(holds=False, reason=Reason.FORMING, message=Reason.FORMING.sentence)


def _waits_for(
    wish: Wish, seen: Observation, now: datetime, foreign: Obstacle | None
) -> Running | None:
    return (
        _refused(seen, foreign)
        or _hindered(wish, seen)
        or _paused(seen, now)
        or _pods_missing(wish, seen)
        or _agents_missing(wish, seen, now)
    )


def _refused(seen: Observation, foreign: Obstacle | None) -> Running | None:
    if seen.refusal is not None:
        return Running(holds=False, reason=seen.refusal.reason, message=seen.refusal.message)
    if foreign is not None:
        return Running(holds=False, reason=foreign.reason, message=foreign.message)
    return None


def _hindered(wish: Wish, seen: Observation) -> Running | None:
    for pod in seen.own:
        if pod.index < wish.spec.replicas and pod.obstacle is not None:
            return Running(holds=False, reason=pod.obstacle.reason, message=pod.obstacle.message)
    return None


def _paused(seen: Observation, now: datetime) -> Running | None:
    restarts = seen.status.restarts
    wait = retry_time(restarts)
    if wait is not None and now < wait:
        return Running(
            holds=False,
            reason=Reason.BACKING_OFF,
            message=(
                f"Failure {restarts.count}: {restarts.message} The next attempt begins at "
                f"{wait:%H:%M:%S} UTC."
            ),
        )
    failed = next((pod for pod in seen.own if is_failed(pod)), None)
    if failed is not None:
        return Running(holds=False, reason=Reason.POD_FAILED, message=describe_exit(failed))
    return None


def _pods_missing(wish: Wish, seen: Observation) -> Running | None:
    running = {pod.index for pod in seen.own if pod.live}
    missing = [i for i in range(wish.spec.replicas) if i not in running]
    if not missing:
        return None
    lost = [pod for pod in seen.own if pod.index in missing and pod.disruption is not None]
    if lost:
        return Running(holds=False, reason=Reason.POD_LOST, message=describe_exit(lost[0]))
    phases = {pod.index: pod.phase for pod in seen.own}
    named = ", ".join(
        f"{seen.run.pod_name(i)} ({phases.get(i, PodPhase.PENDING)})" for i in missing[:5]
    )
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""  # noqa: PLR2004
    return Running(
        holds=False,
        reason=Reason.WAITING_FOR_PODS,
        message=f"{len(missing)} of {wish.spec.replicas} pods do not run yet: {named}{more}.",
    )


def _agents_missing(wish: Wish, seen: Observation, now: datetime) -> Running | None:
    for pod in seen.own:
        answer = seen.agents.get(pod.uid)
        if pod.index >= wish.spec.replicas:
            continue
        if isinstance(answer, Silence) and now >= answer.since + timedelta(seconds=HICCUP_S):
            message = f"The agent of pod {pod.name} does not answer: {answer.message}"
        elif not isinstance(answer, AgentStatus) or answer.state is AgentState.STARTING:
            message = f"The agent of pod {pod.name} starts its workers."
        else:
            continue
        return Running(holds=False, reason=Reason.WAITING_FOR_AGENTS, message=message)
    return None


def _trained_until_now(seen: Observation) -> bool:
    return any(
        condition.type == ConditionType.RUNNING and condition.status is ConditionStatus.TRUE
        for condition in seen.status.conditions
    )

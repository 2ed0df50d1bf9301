"""The condition `Running`: whether the group trains, else what the run waits for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.status import ConditionStatus
from modelscaling.protocol import AgentState, AgentStatus
from modelscaling_operator.bystanders import RETRY_S, goes_on
from modelscaling_operator.failure import (
    describe_exit,
    failure_while_forming,
    is_failed,
    retry_time,
)
from modelscaling_operator.observation import PodPhase, Silence
from modelscaling_operator.other_data import other_data
from modelscaling_operator.presence import HICCUP_S

if TYPE_CHECKING:
    from datetime import datetime

    from modelscaling_operator.observation import Observation
    from modelscaling_operator.roles import Roles
    from modelscaling_operator.wish import Wish

_NAMED = 5
"""Pods that a message names; the others are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What the condition says."""

    holds: bool
    reason: str
    message: str


def group_trains(seen: Observation, now: datetime) -> bool:
    """Whether the present group trains, as far as its agents answer."""
    group = seen.status.group
    # Workers that cannot reach each other wait, and know no better than that they train.
    if group is None or group.broken == Reason.PODS_SEVERED:
        return False
    pods = [pod for pod in seen.members if pod and pod.has_agent]
    members = [
        agent
        for agent in (seen.agent(pod) for pod in pods)
        if agent is not None and agent.generation == group.generation
    ]
    if members:
        states = {agent.state for agent in members}
        return AgentState.TRAINING in states and AgentState.WARM not in states
    silences = (seen.silent_since(pod) for pod in pods)
    return _trained_until_now(seen) and any(
        since is not None and now < since + timedelta(seconds=HICCUP_S) for since in silences
    )


def describe_running(wish: Wish, seen: Observation, roles: Roles, now: datetime) -> Running:
    """Return the condition; what stands most in the way is told first."""
    group = seen.status.group
    if group is not None and group_trains(seen, now):
        message = f"{group.members} pods train on the mesh {group.mesh}."
        if roles.resting and len(roles.wished) == wish.spec.replicas:
            message += f" A spare failed: {_describe_resting(roles)}"
        return Running(holds=True, reason=Reason.TRAINING, message=message)
    failure = failure_while_forming(seen)
    again = f" The last attempt failed: {failure}" if failure else ""
    forming = Running(holds=False, reason=Reason.FORMING, message=Reason.FORMING.sentence + again)
    if goes_on(group):
        return forming
    return waits_for(wish, seen, roles, now) or forming


def waits_for(wish: Wish, seen: Observation, roles: Roles, now: datetime) -> Running | None:
    """Return what stands between the run and the group that is wished; None if nothing does."""
    return (
        _refused(seen)
        or _hindered(roles)
        or _failed_beside(wish, roles)
        or _sees_other_data(seen, roles)
        or _paused(seen, roles, now)
        or _pods_missing(wish, seen, roles)
        or _agents_missing(seen, roles, now)
    )


def _refused(seen: Observation) -> Running | None:
    if seen.refusal is None:
        return None
    return Running(holds=False, reason=seen.refusal.reason, message=seen.refusal.message)


def _hindered(roles: Roles) -> Running | None:
    for pod in roles.wished:
        if pod.obstacle is not None:
            return Running(holds=False, reason=pod.obstacle.reason, message=pod.obstacle.message)
    return None


def _failed_beside(wish: Wish, roles: Roles) -> Running | None:
    """Return that a pod failed that is to join; where all have come, it was to be a spare."""
    if not roles.resting or len(roles.wished) == wish.spec.replicas:
        return None
    return Running(holds=False, reason=Reason.NEWCOMER_FAILED, message=_describe_resting(roles))


def _describe_resting(roles: Roles) -> str:
    described = describe_exit(roles.resting[0]).removesuffix(".")
    return f"{described}. The next one is tried {RETRY_S} s later."


def _sees_other_data(seen: Observation, roles: Roles) -> Running | None:
    why = other_data(seen)
    found = next((why[pod.uid] for pod in roles.wished if pod.uid in why), None)
    if found is None:
        return None
    return Running(holds=False, reason=Reason.DATA_MISMATCH, message=found)


def _paused(seen: Observation, roles: Roles, now: datetime) -> Running | None:
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
    beside = frozenset(pod.uid for pod in (*roles.resting, *roles.surplus))
    failed = next((pod for pod in seen.own if is_failed(pod) and pod.uid not in beside), None)
    if failed is not None:
        return Running(holds=False, reason=Reason.POD_FAILED, message=describe_exit(failed))
    return None


def _pods_missing(wish: Wish, seen: Observation, roles: Roles) -> Running | None:
    waiting = [f"{pod.name} ({pod.phase})" for pod in roles.wished if not pod.live]
    number = len(waiting) + wish.spec.replicas - len(roles.wished)
    if not number:
        return None
    lost = next((pod for pod in seen.own if pod.disruption is not None), None)
    if lost is not None:
        return Running(holds=False, reason=Reason.POD_LOST, message=describe_exit(lost))
    waiting += [f"{seen.run.pod_name(index)} ({PodPhase.PENDING})" for index in roles.create]
    named = waiting[: min(number, _NAMED)]
    more = f" and {number - len(named)} more" if number > len(named) and named else ""
    detail = f": {', '.join(named)}{more}" if named else ""
    broken = seen.status.group.broken if seen.status.group else ""
    why = f" {seen.status.restarts.message}." if broken == Reason.PODS_SEVERED else ""
    return Running(
        holds=False,
        reason=broken or Reason.WAITING_FOR_PODS,
        message=f"{number} of {wish.spec.replicas} pods do not run yet{detail}.{why}",
    )


def _agents_missing(seen: Observation, roles: Roles, now: datetime) -> Running | None:
    members = frozenset(seen.status.group.pods if seen.status.group else ())
    for pod in roles.wished:
        answer = seen.agents.get(pod.uid)
        if isinstance(answer, Silence) and now >= answer.since + timedelta(seconds=HICCUP_S):
            message = f"The agent of pod {pod.name} does not answer: {answer.message}"
        elif isinstance(answer, Silence) and pod.uid in members:
            continue
        elif not isinstance(answer, AgentStatus) or answer.state is AgentState.STARTING:
            message = f"The agent of pod {pod.name} starts its workers."
            failure = answer.failure if isinstance(answer, AgentStatus) else None
            if failure is not None:
                message += f" The last ones failed: {failure.message}"
        else:
            continue
        return Running(holds=False, reason=Reason.WAITING_FOR_AGENTS, message=message)
    return None


def _trained_until_now(seen: Observation) -> bool:
    return any(
        condition.type == ConditionType.RUNNING and condition.status is ConditionStatus.TRUE
        for condition in seen.status.conditions
    )

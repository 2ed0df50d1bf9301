"""Why the present group cannot stay as it is, and who may hold the run's state."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from modelscaling.api.conditions import Reason
from modelscaling.exit_code import ExitCode
from modelscaling.protocol import AgentState
from modelscaling_operator.observation import PodPhase
from modelscaling_operator.presence import HICCUP_S, Presence
from modelscaling_operator.roles import is_finishing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from modelscaling.api.group_status import GroupStatus
    from modelscaling_operator.observation import Observation, Pod

START_LIMIT_S = 10
"""Seconds that an agent may stay warm after it took an assignment, without a failure, before the
group is formed again."""

_SEVERITY = (
    "",
    Reason.POD_LEFT.value,
    Reason.GROUP_BROKE.value,
    Reason.PODS_SEVERED.value,
    Reason.NODE_LOST.value,
)


def note_breakage(
    group: GroupStatus, seen: Observation, present: Mapping[str, Presence], now: datetime
) -> GroupStatus:
    """Return the group with the reason for which it cannot stay: the worst one that was seen, as
    long as there is any.
    """
    reasons = [_why_gone(pod, group, seen, present) for pod in seen.members]
    if not group.trained:
        reasons += [_why_not_handed_over(pod, group, present) for pod in seen.leavers]
    found = [reason for reason in reasons if reason]
    if not found:
        # Members that a leaving pod had saved and stopped are idle too: that is no other reason.
        idle = [_why_idle(pod, group, seen, now) for pod in seen.members if pod]
        found = [reason for reason in idle if reason]
    if not found:
        return group.model_copy(update={"broken": ""})
    known = [word for word in (group.broken, *found) if word in _SEVERITY]
    worst = max(known, key=_SEVERITY.index) if known else found[0]
    # A reason from elsewhere, such as another template, says more than what follows from it.
    is_foreign = bool(group.broken) and group.broken not in _SEVERITY
    return group.model_copy(update={"broken": group.broken if is_foreign else str(worst)})


def is_coming_to_its_end(seen: Observation, now: datetime) -> bool:
    """Whether the group is about to end because all steps are done: its pods then end one after
    another, which is no loss.
    """
    pods = [pod for pod in seen.members if pod]
    if any(is_finishing(pod, seen, now) for pod in pods):
        return True
    if any(pod.phase is PodPhase.FAILED for pod in pods):
        return False
    agents = [agent for pod in pods if (agent := seen.agent(pod))]
    if any(agent.state is AgentState.ENDED and agent.failure is None for agent in agents):
        return True
    progress = seen.status.progress
    is_done = progress is not None and progress.is_last
    return is_done and any(seen.silent_since(pod) is not None for pod in pods)


def holders(seen: Observation, present: Mapping[str, Presence]) -> tuple[Pod, ...]:
    """Return the living pods that may hold a part of the run's state: those of the present group,
    and before it has trained those that were to hand theirs over to it.
    """
    group = seen.status.group
    told = seen.members if group is None or group.trained else (*seen.members, *seen.leavers)
    return tuple(
        pod
        for pod in told
        if pod is not None
        and present[pod.uid] in {Presence.ABLE, Presence.STARTING, Presence.LEAVING}
        and _may_hold(pod, seen)
    )


def is_awaited(pod: Pod, seen: Observation, now: datetime) -> bool:
    """Whether a pod that does not answer is likely to do so soon."""
    since = seen.silent_since(pod)
    return since is not None and now < since + timedelta(seconds=HICCUP_S)


def _may_hold(pod: Pod, seen: Observation) -> bool:
    agent = seen.agent(pod)
    return agent is None or agent.generation > 0


def _why_gone(
    pod: Pod | None, group: GroupStatus, seen: Observation, present: Mapping[str, Presence]
) -> str | None:
    if pod is None:
        return group.broken or Reason.GROUP_BROKE
    match present[pod.uid]:
        case Presence.ABLE | Presence.STARTING:
            return None
        case Presence.LOST:
            return Reason.NODE_LOST
        case Presence.SEVERED:
            return Reason.PODS_SEVERED
        case Presence.LEAVING:
            return Reason.POD_LEFT
    agent = seen.agent(pod)
    was_told = (
        pod.deletion_deadline is not None
        or (agent is not None and agent.is_leaving)
        or (pod.exit is not None and pod.exit.code == ExitCode.INTERRUPTED)
    )
    return Reason.POD_LEFT if was_told else Reason.GROUP_BROKE


def _why_not_handed_over(
    pod: Pod | None, group: GroupStatus, present: Mapping[str, Presence]
) -> str | None:
    """Return why a leaver will not hand over; one that ended well has done so."""
    if pod is None:
        return group.broken or Reason.GROUP_BROKE
    match present[pod.uid]:
        case Presence.LOST:
            return Reason.NODE_LOST
        case Presence.SEVERED:
            return Reason.PODS_SEVERED
        case Presence.ENDED if not _was_released(pod, group):
            return Reason.GROUP_BROKE
    return None


def _was_released(pod: Pod, group: GroupStatus) -> bool:
    """Whether a pod has ended in order in the group that it was to leave with."""
    if pod.exit is None or pod.exit.code not in {ExitCode.DONE, ExitCode.INTERRUPTED}:
        return False
    report = pod.exit.report
    return report is not None and report.generation == group.generation


def _why_idle(pod: Pod, group: GroupStatus, seen: Observation, now: datetime) -> str | None:
    """Return why a member does not come to the group: it took it, and waits for another one."""
    agent = seen.agent(pod)
    if agent is None or agent.state is not AgentState.WARM:
        return None
    if agent.generation != group.generation:
        return None
    if agent.growth_rejection is not None:
        return Reason.GROWTH_REJECTED
    is_overdue = now > group.decided_time + timedelta(seconds=START_LIMIT_S)
    return Reason.GROUP_BROKE if agent.failure is not None or is_overdue else None

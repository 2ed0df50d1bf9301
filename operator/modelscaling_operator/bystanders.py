"""Pods beside a group that goes on: newcomers, which an edit or a rescale asks for, and spares.

The group trains without them, so what becomes of them is no failure of the run: a template with
too little memory must not end a run that trains on in the pods before it, or could once the edit
is taken back. One that fails holds its place for a while before the next is tried in it; until then
its log can be read.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from modelscaling.api.conditions import ConditionType

if TYPE_CHECKING:
    from datetime import datetime

    from modelscaling.api.group_status import GroupStatus
    from modelscaling_operator.observation import Observation, Pod

RETRY_S = 60
"""Seconds after its end in which the place of one that failed is not taken."""


def goes_on(group: GroupStatus | None) -> bool:
    """Whether a group will train without anybody's help, if it does not now: its pods are there,
    and meet.
    """
    return group is not None and bool(group.pods) and not group.broken


def bystanders(seen: Observation) -> frozenset[str]:
    """Return the pods, by UID, that the present group goes on without and that were in none; where
    it does not go on, those of an edit that could be taken back: its own pods are still there.
    """
    group = seen.status.group
    if group is None or not group.pods:
        return frozenset()
    others = seen.outsiders
    if group.broken:
        told = (*seen.members, *seen.leavers)
        before = {pod.revision for pod in told if pod and pod.live}
        others = tuple(pod for pod in others if before and pod.revision not in before)
        others = tuple(pod for pod in others if not _had_ended(pod, seen))
    return frozenset(pod.uid for pod in others if not _may_have_been_a_member(pod, group, seen))


def next_try_time(pod: Pod) -> datetime:
    """Return when the next one is tried in the place of a bystander that failed."""
    return _end_of(pod) + timedelta(seconds=RETRY_S)


def _end_of(pod: Pod) -> datetime:
    return (pod.exit.finished if pod.exit else None) or pod.created


def _had_ended(pod: Pod, seen: Observation) -> bool:
    """Whether a pod failed while the run still trained: the next is tried at once now."""
    stopped = (c for c in seen.status.conditions if c.type == ConditionType.RUNNING)
    since = next((c.last_transition_time for c in stopped), None)
    return pod.ended and since is not None and _end_of(pod) < since


def _may_have_been_a_member(pod: Pod, group: GroupStatus, seen: Observation) -> bool:
    """Whether a pod may have trained: one that failed as a member is often done without before its
    kubelet says so, and its failure counts.
    """
    agent = seen.agent(pod)
    if agent is not None:
        return agent.generation > 0
    if pod.exit is not None and pod.exit.report is not None:
        return pod.exit.report.generation > 0
    if pod.exit is not None and pod.exit.code < 0:
        return False  # its node refused it: it never ran
    # Nothing is left that could tell, but when it was made.
    return pod.created < group.decided_time

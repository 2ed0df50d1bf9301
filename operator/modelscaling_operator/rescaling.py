"""The condition `Rescaling`: from when another group is wished until it trains, and why not yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling_operator.bystanders import goes_on
from modelscaling_operator.group import LOSSES
from modelscaling_operator.membership import present_assignment
from modelscaling_operator.progress import describe_unsaved
from modelscaling_operator.rollover import outdated_members, waits_for_save
from modelscaling_operator.running import Running, group_trains, waits_for

if TYPE_CHECKING:
    from datetime import datetime

    from modelscaling.api.group_status import GroupStatus
    from modelscaling_operator.draft import Draft
    from modelscaling_operator.observation import Observation
    from modelscaling_operator.roles import Roles
    from modelscaling_operator.wish import Wish

_COMING = frozenset({Reason.WAITING_FOR_PODS, Reason.WAITING_FOR_AGENTS})
"""Why a group is waited for that nothing stands in the way of."""


def say_rescaling(
    draft: Draft, wish: Wish, seen: Observation, roles: Roles, now: datetime
) -> Draft:
    """Return the draft with the condition."""
    group = seen.status.group
    if group is not None and _is_forming(group):
        return draft.condition(
            ConditionType.RESCALING,
            holds=True,
            reason=group.cause,
            message=f"The group changes from {group.stopped_mesh} to {group.mesh}.",
        )
    if group is None or is_as_wished(wish, seen):
        return draft.calm(ConditionType.RESCALING, Reason.NOT_RESCALING)
    if not group_trains(seen, now) and not goes_on(group):
        return draft.calm(ConditionType.RESCALING, Reason.NOT_RESCALING)
    waiting = waits_for(wish, seen, roles, now) or _saves_fail(wish, seen)
    if waiting and waiting.reason in _COMING and _has_failed_before(draft):
        # The next one is tried: told anew each minute, that would be a storm of Events.
        return draft
    change = (
        "Pods of the edited spec are to replace those that train"
        if outdated_members(wish, seen)
        else f"The group changes from {group.mesh} to {wish.plan.mesh}"
    )
    return draft.condition(
        ConditionType.RESCALING,
        holds=True,
        reason=waiting.reason if waiting else Reason.WAITING_FOR_AGENTS,
        message=f"{change}: {waiting.message}" if waiting else f"{change}.",
    )


def _has_failed_before(draft: Draft) -> bool:
    """Whether a pod of the very same spec has failed that was to join the group."""
    condition = draft.conditions.get(ConditionType.RESCALING)
    return (
        condition is not None
        and condition.reason == Reason.NEWCOMER_FAILED
        and condition.observed_generation == draft.seen.generation
    )


def _saves_fail(wish: Wish, seen: Observation) -> Running | None:
    if not waits_for_save(wish, seen):
        return None
    return Running(
        holds=False,
        reason=Reason.CHECKPOINT_FAILED,
        message=f"they wait for a save that succeeds.{describe_unsaved(seen.status.progress)}",
    )


def is_as_wished(wish: Wish, seen: Observation) -> bool:
    """Whether the present group is the one that is wished, of pods that stay."""
    group = seen.status.group
    if group is None or group.broken or group.members != wish.spec.replicas:
        return False
    if outdated_members(wish, seen):
        return False
    return present_assignment(wish, seen) is not None


def _is_forming(group: GroupStatus) -> bool:
    """Whether a group that trained is being replaced by plan, rather than after a loss."""
    is_planned = group.cause not in LOSSES
    return not group.trained and group.stopped_mesh is not None and is_planned

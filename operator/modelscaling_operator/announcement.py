"""Events: what changed from one status to the next, in words for people.

Derived from the status, which is written first, so that a change is told once, whoever acts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.modelscaling import API_VERSION, KIND
from modelscaling.api.status import ConditionStatus
from modelscaling_operator.identity import FIELD_MANAGER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelscaling.api.status import Condition, ModelScalingStatus
    from modelscaling_operator.identity import RunIdentity

_MESSAGE_MAX_LENGTH = 1024
_BEGINNING = frozenset(
    {
        Reason.NOT_SUSPENDED,
        Reason.WAITING_FOR_PODS,
        Reason.STEPS_DONE,
        Reason.NOT_OVERFITTING,
    }
)
_TOLD_BY_ANOTHER = frozenset(
    {
        Reason.NOT_SUSPENDED,
        Reason.COMPLETE,
        Reason.FAILED,
        Reason.FORMING,
        Reason.POD_FAILED,
        Reason.SUSPENDED,
        Reason.SCALED_TO_ZERO,
    }
)
_TROUBLES = frozenset(
    {
        Reason.UNSCHEDULABLE,
        Reason.POD_CANNOT_START,
        Reason.POD_FORBIDDEN,
        Reason.POD_LOST,
        Reason.NEWCOMER_FAILED,
        Reason.NAME_TAKEN,
        Reason.NODE_LOST,
        Reason.PODS_SEVERED,
        Reason.CHECKPOINT_FAILED,
        Reason.DATA_MISMATCH,
        Reason.NO_STEP,
        Reason.VALIDATION_LOSS_ROSE,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """One Event."""

    warning: bool
    reason: str
    message: str


def announcements(before: ModelScalingStatus, after: ModelScalingStatus) -> Iterator[Announcement]:
    """Yield what is worth telling about a change of the status."""
    if after.restarts.count > before.restarts.count:
        yield Announcement(warning=True, reason=Reason.POD_FAILED, message=after.restarts.message)
    if after.group is not None and (
        before.group is None or after.group.generation > before.group.generation
    ):
        yield Announcement(
            warning=False,
            reason=Reason.FORMING,
            message=(
                f"Group {after.group.generation} of {after.group.members} pods forms on the mesh "
                f"{after.group.mesh} ({after.group.cause})."
            ),
        )
    known = {condition.type: condition for condition in before.conditions}
    for condition in after.conditions:
        yield from _of_condition(known.get(condition.type), condition)


def _of_condition(before: Condition | None, after: Condition) -> Iterator[Announcement]:
    if after.type == ConditionType.RESCALING and after.reason not in _TROUBLES:
        return  # the groups tell of it
    holds = after.status is ConditionStatus.TRUE
    if before is not None and (before.status, before.reason) == (after.status, after.reason):
        return
    # Not yet running, not suspended: how every run begins.
    if before is None and not holds and after.reason in _BEGINNING:
        return
    bad = (after.type == ConditionType.ACCEPTED and not holds) or (
        after.type == ConditionType.FAILED
    )
    troubled = after.reason in _TROUBLES
    if not holds and after.reason in _TOLD_BY_ANOTHER:
        return
    yield Announcement(warning=bad or troubled, reason=after.reason, message=after.message)


def event_manifest(
    run: RunIdentity, announcement: Announcement, now: datetime, *, seconds: int = 60
) -> dict[str, Any]:
    """Return the Event. Its name is made from what it says, so that the same is told at most once
    in `seconds`.
    """
    window = int(now.timestamp()) // seconds
    content = f"{run.uid}/{announcement.reason}/{announcement.message}/{window}"
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    time = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": run.namespace, "name": f"{run.name}.{digest}"},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "namespace": run.namespace,
            "name": run.name,
            "uid": run.uid,
        },
        "type": "Warning" if announcement.warning else "Normal",
        "reason": announcement.reason,
        "message": announcement.message[:_MESSAGE_MAX_LENGTH],
        "source": {"component": FIELD_MANAGER},
        "reportingComponent": FIELD_MANAGER,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }

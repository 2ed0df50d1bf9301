"""Conditions as one value: set one, keep the time at which it last changed, derive the state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.status import Condition, ConditionStatus, RunState
from modelscaling.api.status_base import MESSAGE_MAX_LENGTH

if TYPE_CHECKING:
    from datetime import datetime

_ORDER = [kind.value for kind in ConditionType]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionSet:
    """A run's conditions at one time of decision."""

    conditions: tuple[Condition, ...]
    generation: int
    now: datetime

    def get(self, kind: ConditionType) -> Condition | None:
        """Return a condition, if it was ever set."""
        return next((c for c in self.conditions if c.type == kind), None)

    def holds(self, kind: ConditionType) -> bool:
        """Whether a condition is True."""
        condition = self.get(kind)
        return condition is not None and condition.status is ConditionStatus.TRUE

    def since(self, kind: ConditionType) -> datetime:
        """Return since when a condition has its value; now if it was never set."""
        condition = self.get(kind)
        return condition.last_transition_time if condition else self.now

    def reason(self, kind: ConditionType) -> str:
        """Return a condition's reason; empty if it was never set."""
        condition = self.get(kind)
        return condition.reason if condition else ""

    def set(self, kind: ConditionType, *, holds: bool, reason: str, message: str) -> ConditionSet:
        """Return the set with one condition changed; its time changes only with its status."""
        status = ConditionStatus.TRUE if holds else ConditionStatus.FALSE
        before = self.get(kind)
        kept = before is not None and before.status is status
        condition = Condition(
            type=kind.value,
            status=status,
            observed_generation=self.generation,
            # Kubernetes keeps times of conditions in whole seconds.
            last_transition_time=(
                before.last_transition_time
                if before is not None and kept
                else self.now.replace(microsecond=0)
            ),
            reason=str(reason),
            message=message[:MESSAGE_MAX_LENGTH],
        )
        others = [c for c in self.conditions if c.type != kind]
        ordered = sorted([*others, condition], key=lambda c: _ORDER.index(c.type))
        return ConditionSet(conditions=tuple(ordered), generation=self.generation, now=self.now)


_STATE_BY_REASON = {
    Reason.SUSPENDING: RunState.SUSPENDING,
    Reason.BACKING_OFF: RunState.RESTARTING,
    Reason.GROUP_BROKE: RunState.RESTARTING,
    Reason.POD_FAILED: RunState.RESTARTING,
    Reason.POD_LOST: RunState.RESTARTING,
    Reason.NODE_LOST: RunState.RESTARTING,
    Reason.PODS_SEVERED: RunState.RESTARTING,
    Reason.POD_LEFT: RunState.RESTARTING,
    Reason.WAITING_FOR_AGENTS: RunState.STARTING,
    Reason.FORMING: RunState.STARTING,
}


def derive_state(conditions: ConditionSet) -> RunState:
    """Return the one word that `kubectl get` shows."""
    for kind, state in (
        (ConditionType.COMPLETE, RunState.COMPLETE),
        (ConditionType.FAILED, RunState.FAILED),
        (ConditionType.SUSPENDED, RunState.SUSPENDED),
        (ConditionType.STALLED, RunState.STALLED),
        (ConditionType.RESCALING, RunState.RESCALING),
        (ConditionType.RUNNING, RunState.RUNNING),
    ):
        if conditions.holds(kind):
            return state
    accepted = conditions.get(ConditionType.ACCEPTED)
    if accepted is not None and accepted.status is ConditionStatus.FALSE:
        return RunState.INVALID
    reason = conditions.reason(ConditionType.RUNNING)
    return next(
        (state for word, state in _STATE_BY_REASON.items() if word == reason), RunState.PENDING
    )

"""The status in the making, and the decision that comes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.status import (
    PLAN_REASON_MAX_LENGTH,
    ModelScalingStatus,
    ModelStatus,
    PlanStatus,
    RejectedMesh,
)
from modelscaling.protocol import AgentState
from modelscaling.quantity import format_quantity
from modelscaling_operator.advising import advise, best_checkpoint, say_overfitting
from modelscaling_operator.condition_set import ConditionSet, derive_state
from modelscaling_operator.failure import count_failures
from modelscaling_operator.ledger import record_training
from modelscaling_operator.progress import newest_progress, progress_status
from modelscaling_operator.wish import Rejection, Wish

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from modelscaling.plan import Plan
    from modelscaling_operator.action import Action
    from modelscaling_operator.observation import Observation, Pod

IDLE_S = 300.0
"""Seconds after which a run is looked at again although nothing happened."""
EVENTS_S = 5.0
"""The same, while pods are awaited that the API server will tell of."""

_READY = frozenset({AgentState.WARM, AgentState.FORMING, AgentState.TRAINING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is to be said, then done, and when to look again."""

    status: ModelScalingStatus
    actions: tuple[Action, ...] = ()
    requeue_s: float = IDLE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """The status in the making."""

    seen: Observation
    now: datetime
    status: ModelScalingStatus
    conditions: ConditionSet

    @classmethod
    def begin(cls, wish: Wish | Rejection, seen: Observation, now: datetime) -> Draft:
        """Return the status with all that is only observed."""
        progress = newest_progress(seen)
        known = seen.status.progress
        step = max(progress.step if progress else 0, known.step if known else 0)
        status = seen.status.model_copy(
            update={
                "observed_generation": seen.generation,
                "selector": seen.run.selector,
                **_counts(wish, seen),
                "progress": progress_status(progress, known, now) if progress else known,
                "restarts": count_failures(seen, now, step=step),
                **(_sizes(wish) if isinstance(wish, Wish) else {}),
            }
        )
        status = record_training(status, seen, progress)
        if isinstance(wish, Wish):
            told = (wish.configuration, status, progress)
            status = status.model_copy(
                update={"advice": advise(*told), "best_checkpoint": best_checkpoint(*told)}
            )
        conditions = ConditionSet(
            conditions=seen.status.conditions, generation=seen.generation, now=now
        )
        conditions = say_overfitting(conditions, progress)
        return cls(seen=seen, now=now, status=status, conditions=conditions)

    def condition(self, kind: ConditionType, *, holds: bool, reason: str, message: str) -> Draft:
        """Return the draft with one condition set."""
        changed = self.conditions.set(kind, holds=holds, reason=reason, message=message)
        return replace(self, conditions=changed)

    def update(self, **fields: object) -> Draft:
        """Return the draft with fields of the status set."""
        return replace(self, status=self.status.model_copy(update=fields))

    def finish(self, actions: Iterable[Action | None] = (), requeue_s: float = IDLE_S) -> Decision:
        """Return the decision."""
        status = self.status.model_copy(
            update={
                "conditions": self.conditions.conditions,
                "state": derive_state(self.conditions),
            }
        )
        return Decision(
            status=status,
            actions=tuple(action for action in actions if action is not None),
            requeue_s=max(requeue_s, 0.01),
        )

    def not_running(self, reason: str, message: str) -> Draft:
        """Return the draft of a run that does not train, for a reason."""
        return (
            self.condition(ConditionType.RUNNING, holds=False, reason=reason, message=message)
            .calm(ConditionType.RESCALING, Reason.NOT_RESCALING)
            .calm(ConditionType.STALLED, Reason.STEPS_DONE)
        )

    def calm(self, kind: ConditionType, reason: Reason) -> Draft:
        """Return the draft with a condition that does not hold, for the reason's own sentence."""
        return self.condition(kind, holds=False, reason=reason, message=reason.sentence)


def _sizes(wish: Wish) -> dict[str, object]:
    shape, later = wish.configuration.model, wish.next_stage
    parameters = shape.parameters()
    return {
        "model": ModelStatus(
            parameters=parameters,
            flops_per_token=shape.flops_per_token(),
            shape=(
                f"{shape.layers} layers × {shape.hidden_size}, {shape.heads} heads of "
                f"{shape.head_size} ({shape.kv_heads} key-value), feed-forward "
                f"{shape.feed_forward_size}, vocabulary {shape.vocabulary_size}, context "
                f"{shape.context_length}"
            ),
            size=format_quantity(parameters),
            next_size=format_quantity(later.shape.parameters()) if later else None,
            next_size_tokens=later.tokens if later else None,
        ),
        "plan": _plan_status(wish.plan),
    }


def _plan_status(plan: Plan) -> PlanStatus:
    return PlanStatus(
        mesh=str(plan.mesh),
        estimated_memory_bytes=plan.memory.total if plan.memory else None,
        reason=plan.reason[:PLAN_REASON_MAX_LENGTH],
        rejected=tuple(
            RejectedMesh(mesh=str(other.mesh), reason=other.reason[:PLAN_REASON_MAX_LENGTH])
            for other in plan.rejected
        ),
    )


def _counts(wish: Wish | Rejection, seen: Observation) -> dict[str, object]:
    """Return how many pods there are to train: the members, and those that come up to what is
    wished; neither spares nor the pods that are to replace all members.
    """
    group = seen.status.group
    members = frozenset(group.pods if group else ())
    pods = [pod for pod in seen.own if not pod.ended and pod.deletion_deadline is None]
    pods.sort(key=lambda pod: (pod.uid not in members, not _is_ready(pod, seen)))
    if isinstance(wish, Wish):
        pods = pods[: max(wish.spec.replicas, len(members))]
    return {"replicas": len(pods), "ready_replicas": sum(_is_ready(pod, seen) for pod in pods)}


def _is_ready(pod: Pod, seen: Observation) -> bool:
    agent = seen.agent(pod)
    return pod.live and agent is not None and agent.state in _READY

"""The ledger of the group's changes: what each cost, as the processes that went on tell it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from modelscaling.api.conditions import Reason
from modelscaling.api.group_status import GroupStatus, RescaleRecord, RestartStatus
from modelscaling.api.status import RESCALES_KEPT, ModelScalingStatus, ProgressStatus
from modelscaling.protocol import AgentState
from modelscaling_operator.progress import decimal

if TYPE_CHECKING:
    from modelscaling.protocol import Progress, Resumption
    from modelscaling_operator.observation import Observation


_TELLS_WITHIN_S = 60
"""Seconds in which a group that trains is awaited to tell what its change cost."""


def owes_entry(group: GroupStatus, now: datetime) -> bool:
    """Whether a group that replaced another has yet to tell what that cost, which it does after its
    first step.
    """
    is_entered = group.stopped_mesh is None or group.recorded_attempt > 0
    return not is_entered and now < group.decided_time + timedelta(seconds=_TELLS_WITHIN_S)


def record_training(
    status: ModelScalingStatus, seen: Observation, progress: Progress | None
) -> ModelScalingStatus:
    """Return the status once the present group was seen to train: with the change that led to it
    in the ledger, once for each attempt that took the run up from another.
    """
    group = status.group
    if group is None:
        return status
    group = group.model_copy(update={"trained": group.trained or _trains(seen)})
    resumption = progress.resumption if progress else None
    if resumption is None or not _is_new(resumption, group):
        return status.model_copy(update={"group": group})
    record = _record(resumption, group, status, known=seen.status.progress)
    rescales = (*status.rescales, record)[-RESCALES_KEPT:] if record else status.rescales
    group = group.model_copy(update={"recorded_attempt": resumption.attempt, "trained": True})
    return status.model_copy(update={"group": group, "rescales": rescales})


def _trains(seen: Observation) -> bool:
    group = seen.status.group
    agents = (seen.agent(pod) for pod in seen.members if pod)
    return group is not None and any(
        agent is not None
        and agent.generation == group.generation
        and agent.state is AgentState.TRAINING
        for agent in agents
    )


def _is_new(resumption: Resumption, group: GroupStatus) -> bool:
    return resumption.generation == group.generation and resumption.attempt > group.recorded_attempt


def _cause_of_attempt(group: GroupStatus, restarts: RestartStatus) -> str:
    """Return why the same pods met again: a worker failed since they last trained, or they lost
    touch.
    """
    failed = (restarts.generation, restarts.attempt)
    is_of_worker = failed >= (group.generation, max(group.recorded_attempt, 1))
    return Reason.WORKER_REPLACED if is_of_worker else Reason.GROUP_BROKE


def _record(
    resumption: Resumption,
    group: GroupStatus,
    status: ModelScalingStatus,
    *,
    known: ProgressStatus | None,
) -> RescaleRecord | None:
    """Return the ledger's entry; None where the run did not train right before, as at its start and
    after it was suspended.
    """
    known_step = known.step if known else 0
    is_change = group.recorded_attempt == 0 and group.stopped_mesh is not None
    if is_change:
        # A group in between may have trained and been lost before anybody heard of it: the entry
        # before ends with the one that was seen.
        cause, former = group.cause, group.stopped_mesh
    elif resumption.attempt > 1 and max(resumption.furthest_step, known_step):
        cause, former = _cause_of_attempt(group, status.restarts), group.mesh
    else:
        return None
    resumed = datetime.fromtimestamp(resumption.resumed_time, UTC)
    if resumption.stopped_time is not None:
        downtime_s = resumption.resumed_time - resumption.stopped_time
    else:
        stopped = group.stopped_time if is_change else status.restarts.last_time
        downtime_s = (resumed - stopped).total_seconds() if stopped else 0
    return RescaleRecord(
        time=resumed,
        cause=cause,
        from_=former or group.mesh,
        to=group.mesh,
        downtime_seconds=f"{max(downtime_s, 0):.3f}",
        lost_steps=max(0, resumption.furthest_step - resumption.step, known_step - resumption.step),
        step=resumption.step,
        source=resumption.source.value,
        **_losses(cause, resumption, status),
    )


def _losses(
    cause: str, resumption: Resumption, status: ModelScalingStatus
) -> dict[str, str | None]:
    """Return the losses before and after a change; of one that took growth back, those for which
    it did.
    """
    rejected = status.rejected_growth
    if cause == Reason.GROWTH_REJECTED and rejected is not None:
        return {"loss_before": rejected.loss_before, "loss_after": rejected.loss_after}
    return {
        "loss_before": decimal(resumption.loss_before, 4),
        "loss_after": decimal(resumption.loss_after, 4),
    }

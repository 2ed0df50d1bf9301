"""From what the first rank reports to `status.progress` and the ledger of rescales."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from modelscaling.api.status import (
    RESCALES_KEPT,
    GroupStatus,
    ModelScalingStatus,
    ProgressStatus,
    RescaleRecord,
)
from modelscaling.protocol import AgentState

if TYPE_CHECKING:
    from datetime import datetime

    from modelscaling.protocol import Progress
    from modelscaling_operator.observation import Observation


def newest_progress(seen: Observation) -> Progress | None:
    """Return the newest progress that an agent of the present group reports, or left behind."""
    group = seen.status.group
    if group is None:
        return None
    for pod in seen.own:
        agent = seen.agent(pod)
        if agent is not None and agent.generation == group.generation and agent.progress:
            return agent.progress
        report = pod.exit.report if pod.exit else None
        if report is not None and report.generation == group.generation and report.progress:
            return report.progress
    return None


def progress_status(progress: Progress, now: datetime) -> ProgressStatus:
    """Return progress as the status carries it: numbers with fractions as decimal strings."""
    return ProgressStatus(
        step=progress.step,
        total_steps=progress.total_steps,
        tokens=progress.tokens,
        sample_digest=progress.sample_digest,
        loss=_decimal(progress.loss, 4),
        validation_loss=_decimal(progress.validation_loss, 4),
        tokens_per_second=_decimal(progress.tokens_per_second, 0),
        mfu_percent=_decimal(progress.mfu_ratio, 1, scale=100),
        scaling_efficiency_percent=_decimal(progress.scaling_efficiency_ratio, 1, scale=100),
        goodput_percent=_decimal(progress.goodput_ratio, 1, scale=100),
        checkpoint_step=progress.checkpoint_step,
        estimated_completion_time=_completion(progress, now),
    )


def record_training(status: ModelScalingStatus, seen: Observation) -> ModelScalingStatus:
    """Return the status once the present group was seen to complete a step: with the change
    that led to it in the ledger, if another group trained before.
    """
    group, pulse = status.group, seen.pulse
    if group is None or group.trained or pulse is None or pulse.time is None:
        return status
    if pulse.generation != group.generation or not _trains_now(seen):
        return status
    trained = group.model_copy(
        update={
            "trained": True,
            "stopped_time": None,
            "stopped_step": None,
            "stopped_mesh": None,
        }
    )
    record = _record(group, first_step=pulse.first_step, time=pulse.time)
    rescales = (*status.rescales, record)[-RESCALES_KEPT:] if record else status.rescales
    return status.model_copy(update={"group": trained, "rescales": rescales})


def _trains_now(seen: Observation) -> bool:
    """Whether a member of the present group says that it trains: it may have been suspended."""
    group = seen.status.group
    agents = (seen.agent(pod) for pod in seen.own)
    return group is not None and any(
        agent is not None
        and agent.generation == group.generation
        and agent.state is AgentState.TRAINING
        for agent in agents
    )


def _record(group: GroupStatus, *, first_step: int, time: datetime) -> RescaleRecord | None:
    """Return the ledger's entry; None where the operator did not see both sides of the change."""
    if group.stopped_time is None or group.stopped_step is None or group.stopped_mesh is None:
        return None
    return RescaleRecord(
        time=time,
        cause=group.cause,
        from_=group.stopped_mesh,
        to=group.mesh,
        downtime_seconds=f"{(time - group.stopped_time).total_seconds():.1f}",
        lost_steps=max(0, group.stopped_step - first_step),
    )


def _completion(progress: Progress, now: datetime) -> datetime | None:
    rate = progress.tokens_per_second
    if not rate or not progress.step or progress.step >= progress.total_steps:
        return None
    tokens_left = (progress.total_steps - progress.step) * progress.tokens / progress.step
    return (now + timedelta(seconds=tokens_left / rate)).replace(microsecond=0)


def _decimal(value: float | None, digits: int, *, scale: float = 1) -> str | None:
    return None if value is None else f"{value * scale:.{digits}f}"

"""From what the first rank reports to `status.progress`."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from modelscaling.api.status import CHECKPOINT_FAILURE_MAX_LENGTH, ProgressStatus

if TYPE_CHECKING:
    from datetime import datetime

    from modelscaling.protocol import Progress
    from modelscaling_operator.observation import Observation


def newest_progress(seen: Observation) -> Progress | None:
    """Return the newest progress that an agent of the present group reports, or left behind.

    The first rank knows best; others may still say what they knew as the first of a group before.
    """
    group = seen.status.group
    if group is None:
        return None
    for pod in (*seen.members, *seen.leavers, *seen.outsiders):
        if pod is None:
            continue
        agent = seen.agent(pod)
        if agent is not None and agent.generation == group.generation and agent.progress:
            return agent.progress
        report = pod.exit.report if pod.exit else None
        if report is not None and report.generation == group.generation and report.progress:
            return report.progress
    return None


def progress_status(
    progress: Progress, known: ProgressStatus | None, now: datetime
) -> ProgressStatus:
    """Return progress as the status carries it: numbers with fractions as decimal strings. A
    checkpoint that was known stays so where the group has none, on another volume or none: a group
    that has lost its memory is not to begin the run anew.
    """
    validations, epochs = progress.validations, progress.epochs
    best, last = validations.best, validations.recent[-1] if validations.recent else None
    return ProgressStatus(
        step=progress.step,
        total_steps=progress.total_steps,
        early_stop_step=progress.step if progress.is_stopped_early else None,
        tokens=progress.tokens,
        sample_digest=progress.sample_digest,
        loss=decimal(progress.loss, 4),
        validation_loss=decimal(progress.validation_loss, 4),
        training_loss=decimal(last.training_loss, 4) if last else None,
        best_validation_loss=decimal(best.loss, 4) if best else None,
        best_step=best.step if best else None,
        epoch_tokens=progress.epoch_tokens,
        epochs=decimal(epochs, 2),
        tokens_per_second=decimal(progress.tokens_per_second, 0),
        mfu_percent=decimal(progress.mfu_ratio, 1, scale=100),
        scaling_efficiency_percent=decimal(progress.scaling_efficiency_ratio, 1, scale=100),
        goodput_percent=decimal(progress.goodput_ratio, 1, scale=100),
        checkpoint_step=(
            known.checkpoint_step
            if known is not None and progress.checkpoint_step is None
            else progress.checkpoint_step
        ),
        checkpoint_failure=(
            progress.checkpoint_failure[:CHECKPOINT_FAILURE_MAX_LENGTH]
            if progress.checkpoint_failure
            else None
        ),
        estimated_completion_time=_completion(progress, now),
    )


def describe_unsaved(progress: ProgressStatus | None, *, has_ended: bool = False) -> str:
    """Return, as what follows a sentence, which steps are not saved, where saving failed or the
    run `has_ended` its pods; nothing where there are none.
    """
    if progress is None:
        return ""
    saved, failure = progress.checkpoint_step, progress.checkpoint_failure
    is_lost = has_ended and progress.step > (saved or 0)
    if failure is None and not is_lost:
        return ""
    steps = f"Steps after {saved} are not saved" if saved is not None else "No step is saved"
    return f" {steps}: {failure}" if failure else f" {steps}, and {progress.step} were done."


def _completion(progress: Progress, now: datetime) -> datetime | None:
    rate = progress.tokens_per_second
    if not rate or not progress.step or progress.is_last:
        return None
    tokens_left = (progress.total_steps - progress.step) * progress.tokens / progress.step
    return (now + timedelta(seconds=tokens_left / rate)).replace(microsecond=0)


def decimal(value: float | None, digits: int, *, scale: float = 1) -> str | None:
    """Return a number as the status carries it."""
    return None if value is None else f"{value * scale:.{digits}f}"

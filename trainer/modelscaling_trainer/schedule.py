"""The learning rate of each step, as a pure function."""

from __future__ import annotations

from math import cos, pi
from typing import TYPE_CHECKING

from modelscaling.api.training import ScheduleShape

if TYPE_CHECKING:
    from modelscaling.configuration import OptimizerConfiguration


def learning_rate(
    settings: OptimizerConfiguration, *, step: int, total_steps: int, grown_at: int | None = None
) -> float:
    """Return the rate of `step`, counted from 0, of a model that last grew after `grown_at` steps.

    It rises linearly over the warm-up and reaches its peak in the warm-up's last step, then falls
    over the last `decay_steps` (for Cosine all that are left) and reaches the minimum in the last
    step. After a growth it rises once more, to where it would be without.
    """
    rate = _scheduled_rate(settings, step=step, total_steps=total_steps)
    if grown_at is None or step >= grown_at + settings.rewarmup_steps:
        return rate
    return rate * (step - grown_at + 1) / settings.rewarmup_steps


def _scheduled_rate(settings: OptimizerConfiguration, *, step: int, total_steps: int) -> float:
    peak, lowest = settings.learning_rate, settings.minimum_learning_rate
    if step < settings.warmup_steps:
        return peak * (step + 1) / settings.warmup_steps
    steps_into_decay = step + 1 - (total_steps - settings.decay_steps)
    if steps_into_decay <= 0:
        return peak
    fraction = min(steps_into_decay / settings.decay_steps, 1.0)
    if settings.schedule is ScheduleShape.COSINE:
        return lowest + (peak - lowest) * 0.5 * (1 + cos(pi * fraction))
    return peak + (lowest - peak) * fraction

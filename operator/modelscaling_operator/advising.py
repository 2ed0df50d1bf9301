"""`status.advice`, `status.bestCheckpoint` and the condition `Overfitting`.

What is said is worded so that it does not change with each look at a run that trains, and stays
while nobody reports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelscaling.advice import (
    advise_balance,
    advise_generalisation,
    advise_repetition,
    find_overfitting,
)
from modelscaling.api.advice import AdviceType
from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.status import BestCheckpointStatus

if TYPE_CHECKING:
    from modelscaling.api.advice import Advice
    from modelscaling.api.status import ModelScalingStatus
    from modelscaling.configuration import RunConfiguration
    from modelscaling.protocol import Progress
    from modelscaling_operator.condition_set import ConditionSet


def advise(
    configuration: RunConfiguration, status: ModelScalingStatus, progress: Progress | None
) -> tuple[Advice, ...]:
    """Return the advice on a run, of which `progress` is what is reported now."""
    found: list[Advice | None] = [advise_balance(configuration)]
    reported = status.progress
    if reported is not None and reported.epoch_tokens:
        found.append(advise_repetition(configuration, epoch_tokens=reported.epoch_tokens))
    if progress is not None and progress.epochs is not None:
        found.append(advise_generalisation(progress.validations, epochs=progress.epochs))
    else:
        found += [one for one in status.advice if one.type == AdviceType.GENERALISATION]
    return tuple(one for one in found if one is not None)


def best_checkpoint(
    configuration: RunConfiguration, status: ModelScalingStatus, progress: Progress | None
) -> BestCheckpointStatus | None:
    """Return the best checkpoint that is kept; none is without early stopping."""
    if configuration.training.early_stopping is None:
        return None
    best = progress.best_checkpoint if progress else None
    if best is None:
        return status.best_checkpoint
    return BestCheckpointStatus(step=best.step, validation_loss=f"{best.loss:.4f}")


def say_overfitting(conditions: ConditionSet, progress: Progress | None) -> ConditionSet:
    """Return the conditions with Overfitting, as far as it is known."""
    if progress is None:
        return conditions
    overfitting = find_overfitting(progress.validations)
    if overfitting is None:
        return conditions.set(
            ConditionType.OVERFITTING,
            holds=False,
            reason=Reason.NOT_OVERFITTING,
            message=Reason.NOT_OVERFITTING.sentence,
        )
    return conditions.set(
        ConditionType.OVERFITTING,
        holds=True,
        reason=Reason.VALIDATION_LOSS_ROSE,
        message=(
            f"{overfitting.message} More data, a smaller model or training.earlyStopping help."
        ),
    )

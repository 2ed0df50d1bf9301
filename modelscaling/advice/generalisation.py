"""Validation loss against training loss.

In the first epoch each batch is new when its loss is measured, so that both losses estimate the
same and their difference is no sign of memory: nothing is said then. Later the gap is what
Goodfellow, Bengio and Courville 2016 ("Deep Learning", section 5.2) tell overfitting by. They name
no number; the one here is ours, and well above what 2^15 held-out tokens leave to chance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelscaling.advice.percent import coarse_percent
from modelscaling.api.advice import Advice, AdviceReason, AdviceType

if TYPE_CHECKING:
    from modelscaling.validation_history import ValidationHistory

LARGE_GAP = 0.1
"""Of the training loss."""

_SOURCE = "Goodfellow, Bengio and Courville 2016, Deep Learning, section 5.2"


def advise_generalisation(history: ValidationHistory, *, epochs: float) -> Advice | None:
    """Return what the last validation says after so many epochs; None before the second."""
    if not history.recent or epochs <= 1 or history.recent[-1].training_loss <= 0:
        return None
    last = history.recent[-1]
    gap = last.loss / last.training_loss - 1
    if gap < LARGE_GAP:
        return _advice(
            AdviceReason.SMALL_GAP,
            f"The validation loss is less than {LARGE_GAP:.0%} above the training loss: what is "
            f"learned of the data holds for data that was not trained on.",
        )
    return _advice(
        AdviceReason.LARGE_GAP,
        f"The validation loss is {coarse_percent(gap)} % or more above the training loss: the "
        f"model begins to know the data by heart. More data, a smaller model or a larger "
        f"training.weightDecay narrow the gap; status.progress has both losses.",
    )


def _advice(reason: AdviceReason, message: str) -> Advice:
    return Advice(type=AdviceType.GENERALISATION, reason=reason, message=message, source=_SOURCE)

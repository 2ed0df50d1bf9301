"""Whether a run overfits: its validation loss has risen while its training loss fell.

The rule is of the family of Prechelt 1998 ("Early Stopping — But When?"): the generalisation loss,
by how much a validation lies above the best one, over a threshold in several validations in a row.
That training goes on to improve meanwhile tells overfitting from a run that gets worse altogether,
such as one whose learning rate is too high.

Noise must not look like a rise. The held-out samples are the same each time, so what is left is
the jitter of the weights; it is estimated from the second differences of the last validations, in
which a steady rise or fall cancels. The best of a hundred noisy values lies two to three standard
deviations below their mean, which is why more than that is asked for. The thresholds are ours:
with a jitter of half a percent around a standstill about one look in a hundred is a false alarm,
and with one of a third of that none.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import median
from typing import TYPE_CHECKING

from modelscaling.advice.percent import coarse_percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelscaling.validation_history import Validation, ValidationHistory

IN_A_ROW = 3
"""Validations that must lie above the best one."""
MINIMUM_CHANGE = 0.02
"""By how much at least, as a part of the loss; the training loss must have fallen by as much."""
STANDARD_DEVIATIONS = 4.0
"""By how much of the noise at least."""
CERTAIN_RISE = 0.1
"""A rise that is taken for one whatever the noise: after a steep fall, the bend at the best
validation is taken for noise too."""

_TO_STANDARD_DEVIATION = 1 / (0.6745 * sqrt(6))
"""From the median of absolute second differences, for normal noise: each has 6 variances."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overfitting:
    """A run that overfits."""

    best: Validation
    last: Validation

    @property
    def message(self) -> str:
        """A sentence for people. It changes with the best validation and in coarse steps, not with
        each measurement.
        """
        rise = coarse_percent(self.last.loss / self.best.loss - 1)
        fall = coarse_percent(1 - self.last.training_loss / self.best.training_loss)
        return (
            f"The validation loss was best at step {self.best.step} with {self.best.loss:.4f}, and "
            f"has been higher for at least {IN_A_ROW} validations, by now by {rise} % or "
            f"more, while the training loss fell by {fall} % or more."
        )


def find_overfitting(history: ValidationHistory) -> Overfitting | None:
    """Return how a run overfits; None where it does not, or where that cannot be told yet."""
    best, last = history.best, history.recent[-IN_A_ROW:]
    if best is None or len(last) < IN_A_ROW or best.loss <= 0:
        return None
    noise = STANDARD_DEVIATIONS * _noise(history.recent)
    rise = min(max(MINIMUM_CHANGE * best.loss, noise), CERTAIN_RISE * best.loss)
    has_risen = all(
        validation.step > best.step and validation.loss > best.loss + rise for validation in last
    )
    has_fallen = last[-1].training_loss < best.training_loss * (1 - MINIMUM_CHANGE)
    return Overfitting(best=best, last=last[-1]) if has_risen and has_fallen else None


def _noise(validations: Sequence[Validation]) -> float:
    """Return the standard deviation of the losses around their course, nats a token."""
    losses = [validation.loss for validation in validations]
    triples = zip(losses, losses[1:], losses[2:], strict=False)
    curvatures = [abs(after - 2 * here + before) for before, here, after in triples]
    return median(curvatures) * _TO_STANDARD_DEVIATION if curvatures else 0.0

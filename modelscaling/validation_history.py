"""What a run remembers of its validations: the last ones, the best, and how long ago that was.

It travels with the state, so that a run that goes back to a step goes back to what was known at
that step, and is small enough to be told after every step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite

VALIDATIONS_KEPT = 8
"""Of the last ones; what is said of a run looks no further back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """One measurement. Losses are in nats a token."""

    step: int
    loss: float
    """Over the held-out samples."""
    training_loss: float
    """Mean over the steps since the validation before: each batch before it was trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationHistory:
    """The validations of a run up to a step."""

    recent: tuple[Validation, ...] = ()
    """At most VALIDATIONS_KEPT, the newest last."""
    best: Validation | None = None
    """The last one that improved on all before it."""
    without_improvement: int = 0
    """How many followed the best one while somebody waited for a better one."""

    def after(
        self, validation: Validation, *, min_delta: float = 0.0, is_awaited: bool = True
    ) -> ValidationHistory:
        """Return the history with one more validation, which improves on the best one where its
        loss is lower by more than `min_delta`. One that is not a number only does not improve.
        """
        waited = self.without_improvement + 1 if is_awaited else 0
        if not isfinite(validation.loss):
            return replace(self, without_improvement=waited)
        is_better = self.best is None or validation.loss < self.best.loss - min_delta
        return ValidationHistory(
            recent=(*self.recent, validation)[-VALIDATIONS_KEPT:],
            best=validation if is_better else self.best,
            without_improvement=0 if is_better else waited,
        )

    def is_best_at(self, step: int) -> bool:
        """Whether the best validation is the one of a step."""
        return self.best is not None and self.best.step == step

    def has_lost_patience(self, patience: int | None) -> bool:
        """Whether so many validations followed the best one; never with None."""
        return patience is not None and self.without_improvement >= patience

"""Courses of validations for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelscaling.validation_history import Validation, ValidationHistory

if TYPE_CHECKING:
    from collections.abc import Sequence

EVERY = 10
"""Steps between two validations."""


def make_history(
    losses: Sequence[float],
    training_losses: Sequence[float] | None = None,
    *,
    min_delta: float = 0.0,
) -> ValidationHistory:
    """Return the history of validations at steps 10, 20, …; the training losses are the same unless
    they are given.
    """
    history = ValidationHistory()
    both = zip(losses, training_losses or losses, strict=True)
    for number, (loss, training_loss) in enumerate(both, start=1):
        validation = Validation(step=number * EVERY, loss=loss, training_loss=training_loss)
        history = history.after(validation, min_delta=min_delta)
    return history


OVERFITTING = make_history([3.0, 2.0, 2.1, 2.3, 2.6, 2.9], [3.0, 2.0, 1.8, 1.5, 1.2, 1.0])
"""Best at step 20, then worse and worse on what is not trained on."""

"""Passes over the data.

Muennighoff et al. 2023 ("Scaling Data-Constrained Language Models") find that up to about 4 epochs
are nearly as good as as many new tokens, and that the value of a token then decays with each
repetition: R repetitions of U tokens are worth U·R*·(1 − e^(−R/R*)) new ones, with R* = 15.39
(their appendix A, fitted on models up to 9 billion parameters).
"""

from __future__ import annotations

from math import exp
from typing import TYPE_CHECKING

from modelscaling.api.advice import Advice, AdviceReason, AdviceType
from modelscaling.quantity import format_quantity

if TYPE_CHECKING:
    from modelscaling.configuration import RunConfiguration

HARMLESS_EPOCHS = 4
DECAY_OF_REPETITIONS = 15.387756

_SOURCE = "Muennighoff et al. 2023, arXiv:2305.16264"


def advise_repetition(configuration: RunConfiguration, *, epoch_tokens: int) -> Advice:
    """Return what the planned passes over the training part of the data say, which has so many
    tokens.
    """
    tokens = configuration.training.total_steps * configuration.tokens_per_step
    epochs = tokens / epoch_tokens
    numbers = (
        f"{format_quantity(tokens)} tokens are {epochs:.3g} epochs over the "
        f"{format_quantity(epoch_tokens)} tokens of the data that are trained on"
    )
    if epochs <= HARMLESS_EPOCHS:
        return _advice(
            AdviceReason.LITTLE_REPETITION,
            f"{numbers}; up to about {HARMLESS_EPOCHS}, repeated tokens are nearly worth new ones.",
        )
    return _advice(
        AdviceReason.MUCH_REPETITION,
        f"{numbers}, worth about {effective_epochs(epochs):.3g} epochs of new tokens; beyond about "
        f"{HARMLESS_EPOCHS} their value falls. More data would lower the loss, fewer tokens would "
        f"cost little, and training.earlyStopping ends a run that gains no more.",
    )


def effective_epochs(epochs: float) -> float:
    """Return how many epochs of new tokens so many over the same ones are worth."""
    repetitions = max(epochs - 1, 0.0)
    gained = DECAY_OF_REPETITIONS * (1 - exp(-repetitions / DECAY_OF_REPETITIONS))
    return min(epochs, 1.0) + gained


def _advice(reason: AdviceReason, message: str) -> Advice:
    return Advice(type=AdviceType.REPETITION, reason=reason, message=message, source=_SOURCE)

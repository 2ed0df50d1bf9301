"""`status.advice`: what published results say about a run's numbers."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from modelscaling.api.base import ApiModel


class AdviceType(StrEnum):
    """What an advice speaks of."""

    BALANCE = "Balance"
    """Training tokens against the model's parameters."""
    REPETITION = "Repetition"
    """Passes over the data."""
    GENERALISATION = "Generalisation"
    """Validation loss against training loss."""


class AdviceReason(StrEnum):
    """What is said of it."""

    UNDER_TRAINED = "UnderTrained"
    """Fewer tokens than compute-optimal: a smaller model would be as good."""
    COMPUTE_OPTIMAL = "ComputeOptimal"
    OVER_TRAINED = "OverTrained"
    """More tokens than compute-optimal: dearer to train, cheaper to use."""
    LITTLE_REPETITION = "LittleRepetition"
    """Repeated tokens are worth nearly what new ones are."""
    MUCH_REPETITION = "MuchRepetition"
    """Repeated tokens are worth less than new ones."""
    SMALL_GAP = "SmallGap"
    LARGE_GAP = "LargeGap"
    """The model knows what it was trained on much better than what it was not."""


class Advice(ApiModel):
    """One thing that published results say about the run."""

    model_config = ConfigDict(extra="ignore")

    type: Annotated[str, Field(min_length=1, max_length=64)]
    """Type is what it speaks of: Balance (tokens against parameters), Repetition (passes over the
    data) or Generalisation (validation loss against training loss)."""

    reason: Annotated[str, Field(min_length=1, max_length=64)]
    """Reason is what is said of it, in one word."""

    message: Annotated[str, Field(max_length=1024)]
    """Message is a sentence for people, with the numbers."""

    source: Annotated[str, Field(max_length=256)]
    """Source is the publication that it rests on."""

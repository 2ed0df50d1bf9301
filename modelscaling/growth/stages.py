"""The shapes that a run has one after the other, and which one it should have now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelscaling.shape import ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A shape that a run is to have."""

    tokens: int
    """How many tokens it has trained on from then on; 0 for the first."""
    shape: ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a run has trained so far."""

    tokens: int = 0
    model: ModelShape | None = None
    """What it was told to train last, as it was declared; None before its first step."""


NOTHING_TRAINED = Trained()


def stage_number(stages: tuple[Stage, ...], trained: Trained) -> int:
    """Return the number of the stage that a run should be at: by its tokens, but none before that
    of the model that it has. A model does not shrink where a failure takes the run back to a
    checkpoint from before it grew, or where an entry that was reached is put off.
    """
    return max(
        number
        for number, stage in enumerate(stages)
        if number == 0 or stage.tokens <= trained.tokens or stage.shape == trained.model
    )

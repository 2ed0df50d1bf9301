"""What growth may cost."""

from __future__ import annotations

from enum import StrEnum


class GrowthMode(StrEnum):
    """Whether a larger model must compute what the smaller one did."""

    PRESERVE = "Preserve"
    """Only steps after which the model computes the same; other shapes are refused."""

    STACK = "Stack"
    """Layers are stacked naively, and a head's size and the rotary base may change: the loss jumps,
    and recovers by training."""


class Exactness(StrEnum):
    """How the logits of old tokens at old positions compare before and after, best first."""

    BITWISE = "Bitwise"
    """Each is a sum of the same numbers in the same order, with zeros between them."""

    ROUNDING = "Rounding"
    """Equal in exact arithmetic: about 3e-6 of the largest logit apart in float32."""

    INEXACT = "Inexact"
    """Another function."""

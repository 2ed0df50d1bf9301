"""What the learning rate is multiplied by for each weight (`spec.training.learningRateFactors`).

A function of the weight's name and the number of layers, so that every mesh has the same.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from modelscaling.layout import layers_above, weights
from modelscaling.weight_pattern import matches, unmatched_problem

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from modelscaling.configuration import LearningRateFactor
    from modelscaling.shape import ModelShape


def learning_rate_factors(
    shape: ModelShape, factors: Collection[LearningRateFactor]
) -> dict[str, float]:
    """Return the product of all that match, by the names of the weights."""
    return {
        name: prod(
            (
                each.factor * each.layer_decay ** layers_above(name, shape.layers)
                for each in factors
                if matches(name, each.weights)
            ),
            start=1.0,
        )
        for name in weights(shape)
    }


def learning_rate_problems(
    names: Collection[str], trained: Collection[str], patterns: Sequence[str]
) -> Iterator[tuple[int, str]]:
    """Yield what is wrong with the patterns for a model with weights of these names, of which some
    are trained; each with the pattern's index.
    """
    for index, pattern in enumerate(patterns):
        unmatched = unmatched_problem(pattern, names)
        if unmatched:
            yield index, unmatched
        elif not any(matches(name, pattern) for name in trained):
            frozen = "matches only weights that stay as they are by training.freeze or model.lora"
            yield index, f"{pattern!r} {frozen}; remove it"

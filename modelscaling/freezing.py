"""Weights that stay as they are while the others are trained (`spec.training.freeze`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelscaling.weight_pattern import matches, unmatched_problem

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator


def is_frozen(name: str, patterns: Collection[str]) -> bool:
    """Whether a weight, by its name in modelscaling.layout, stays as it is."""
    return any(matches(name, pattern) for pattern in patterns)


def freezing_problems(
    names: Collection[str], trained: Collection[str], patterns: Collection[str]
) -> Iterator[str]:
    """Yield what is wrong with patterns for a model with weights of these names, of which some are
    trained without them.
    """
    for pattern in patterns:
        unmatched = unmatched_problem(pattern, names)
        if unmatched:
            yield unmatched
        elif not any(matches(name, pattern) for name in trained):
            yield f"{pattern!r} matches only weights that model.lora keeps anyway; remove it"
    if all(is_frozen(name, patterns) for name in trained):
        yield f"no weight is left to train beside {', '.join(map(repr, patterns))}; remove one"

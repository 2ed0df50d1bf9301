"""Weights that stay as they are while the others are trained (`spec.training.freeze`)."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_NAMES_SHOWN = 12


def is_frozen(name: str, patterns: Collection[str]) -> bool:
    """Whether a weight, by its name in modelscaling.layout, stays as it is."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def freezing_problems(names: Collection[str], patterns: Collection[str]) -> Iterator[str]:
    """Yield what is wrong with patterns for a model with weights of these names."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            shown = ", ".join([*names][:_NAMES_SHOWN])
            yield (
                f"{pattern!r} matches no weight; the {len(names)} weights are called {shown}"
                f"{', …' if len(names) > _NAMES_SHOWN else ''}"
            )
    if all(is_frozen(name, patterns) for name in names):
        yield f"no weight is left to train beside {', '.join(map(repr, patterns))}; remove one"

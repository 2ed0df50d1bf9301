"""Patterns of the names of weights, as spec.training has them: shell patterns of whole names."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

_NAMES_SHOWN = 12


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern stands for a weight, by its name in modelscaling.layout."""
    return fnmatchcase(name, pattern)


def unmatched_problem(pattern: str, names: Collection[str]) -> str | None:
    """Return what is wrong with a pattern that stands for none of a model's weights."""
    if any(matches(name, pattern) for name in names):
        return None
    shown = ", ".join([*names][:_NAMES_SHOWN])
    return (
        f"{pattern!r} matches no weight; the {len(names)} weights are called {shown}"
        f"{', …' if len(names) > _NAMES_SHOWN else ''}"
    )

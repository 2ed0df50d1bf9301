"""How many examples are drawn by property tests that take long."""

from __future__ import annotations

from hypothesis import settings


def examples(thorough: int) -> int:
    """Return how many are drawn where the profile `thorough` draws so many."""
    return max(1, thorough * settings().max_examples // 100)

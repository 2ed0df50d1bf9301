"""Ratios for messages that should not change with every digit of what they speak of."""

from __future__ import annotations

_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500)


def coarse_percent(ratio: float) -> int:
    """Return the largest of 1, 2, 5, 10, 20 … 500 that a ratio is at least, in percent; 0 where it
    is below 1 %.
    """
    return max((step for step in _STEPS if ratio * 100 >= step), default=0)

"""Tokens a second, model FLOPs utilisation and goodput, from the times of steps."""

from __future__ import annotations

from collections import deque

_WINDOW_STEPS = 20


class Throughput:
    """The speed of a group over its last steps."""

    def __init__(self, *, tokens_per_step: int, flops_per_token: int, peak_flops: float) -> None:
        """Take the FLOPs as PaLM counts them, and the peak of all devices together."""
        self._tokens_per_step = tokens_per_step
        self._flops_per_token = flops_per_token
        self._peak_flops = peak_flops
        self._seconds: deque[float] = deque(maxlen=_WINDOW_STEPS)

    def add(self, step_seconds: float) -> None:
        """Take the wall time of a step."""
        self._seconds.append(step_seconds)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens a second over the window; None before the first step."""
        if not self._seconds:
            return None
        return self._tokens_per_step * len(self._seconds) / sum(self._seconds)

    @property
    def mfu_ratio(self) -> float | None:
        """Model FLOPs utilisation over the window; None before the first step."""
        speed = self.tokens_per_second
        return None if speed is None else speed * self._flops_per_token / self._peak_flops


def goodput_ratio(*, useful_seconds: float, started_at: float, now: float) -> float:
    """Return the part of the wall time since the run's first group formed that made progress.

    Times are in seconds since 1970; a clock that was set back cannot make it more than 1.
    """
    return min(useful_seconds / max(now - started_at, useful_seconds, 1e-9), 1.0)

"""Steps that a job does while its workers are killed, ÷ those that it does undisturbed.

Both are counted over the same time, of two pods that were training already, one after the other.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from bench.outage import Job

PERIOD_S = 20.0


def measure(start: Callable[[], AbstractContextManager[Job]], *, seconds: float) -> tuple[int, int]:
    """Return the steps of a job whose workers are killed in turns, one every `PERIOD_S`, and those
    of an undisturbed one.
    """
    with start() as job:
        undisturbed = _steps(job, seconds=seconds, kills=[])
    with start() as job:
        disturbed = _steps(job, seconds=seconds, kills=kill_times(seconds))
    return disturbed, undisturbed


def kill_times(seconds: float) -> list[float]:
    """Return when workers are killed: in the middle of each whole period, so that each has the
    time to recover.
    """
    return [PERIOD_S * (number + 0.5) for number in range(int(seconds / PERIOD_S))]


def _steps(job: Job, *, seconds: float, kills: list[float]) -> int:
    began, before = time.monotonic(), job.steps()
    for number, kill in enumerate(kills):
        time.sleep(max(began + kill - time.monotonic(), 0.0))
        job.kill_a_worker(number % 2)
    time.sleep(max(began + seconds - time.monotonic(), 0.0))
    return job.steps() - before

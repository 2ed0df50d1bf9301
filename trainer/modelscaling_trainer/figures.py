"""What one process measured of itself in a step, beside the progress that all share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFigures:
    """One process' figures of one step."""

    step: int
    data_wait_seconds: float
    """Time in which the step waited for its samples."""
    peer_wait_seconds: float
    """Time in which the step was blocked until other processes had sent what it needed, the idle
    time of a pipeline included: least in the slowest of them. On a GPU the device waits for most
    of that by itself, and only what the host waits for is counted (waiting.py)."""
    step_skew_seconds: float
    """How much longer than the mean of all processes this one worked on the step, from its start
    until all agreed on it, what it waited for the others left out: more than 0 in the slow ones.
    """
    communication_ratio: float | None
    """The part of the step's wall time that was peer wait, 0 to 1; None where no step was
    taken, and on a GPU, where the host cannot tell."""
    peak_memory_bytes: int
    """Most memory that the process has held so far: resident on a CPU, allocated on a GPU."""
    checkpoint_seconds: float | None = None
    """How long the checkpoint that ended last took from its start; None where none did."""

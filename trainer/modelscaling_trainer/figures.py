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
    """Time in which the step waited for the other processes: least in the slowest of them."""
    peak_memory_bytes: int
    """Most memory that the process has held so far: resident on a CPU, allocated on a GPU."""
    checkpoint_seconds: float | None = None
    """How long the checkpoint that ended last took from its start; None where none did."""

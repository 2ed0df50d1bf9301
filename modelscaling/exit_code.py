"""What the exit code of an agent's container tells the operator.

The numbers are those of sysexits.h where it has a fitting one, so that they mean the same to
other tools.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of an agent."""

    DONE = 0
    """The run is complete, or the pod was released from it. Never retried."""

    CRASHED = 1
    """A worker or the agent died of something that a retry may mend. Retried with back-off."""

    DIVERGED = 65
    """The loss or the gradient was not finite (EX_DATAERR). Fails the run: a retry from the same
    checkpoint meets the same numbers."""

    INTERRUPTED = 75
    """Told to stop before the run was complete, after saving (EX_TEMPFAIL). Retried at once."""

    CONFIGURATION = 78
    """The run cannot work as it is declared (EX_CONFIG): no file matches, data too short, and so
    on. Fails the run at once."""


FATAL = frozenset({ExitCode.DIVERGED, ExitCode.CONFIGURATION})
"""Codes after which a retry is pointless."""

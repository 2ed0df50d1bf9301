"""Why training ended before its time; one class for each reaction of the caller."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelscaling.protocol import GrowthRejection


class ConfigurationError(Exception):
    """The run cannot work as it is declared; a retry is pointless (exit code 78)."""

    def __init__(self, reason: str, message: str) -> None:
        """Take one word in CamelCase, such as NoData, and a sentence for people."""
        super().__init__(message)
        self.reason = reason
        self.message = message


class DivergedError(Exception):
    """The loss or the gradient was not finite (exit code 65). Nothing was saved since."""

    def __init__(self, message: str) -> None:
        """Take a sentence for people."""
        super().__init__(message)
        self.message = message


class GroupLostError(Exception):
    """A peer or the group's store is gone. The process keeps the state of its last complete
    optimizer step, and can join another group.
    """

    def __init__(self, message: str) -> None:
        """Take a sentence for people."""
        super().__init__(message)
        self.message = message


class GrowthRejectedError(Exception):
    """The grown model's validation loss is above what is allowed. No step was done with it, and the
    process holds its part of the state before, if it had one.
    """

    def __init__(self, rejection: GrowthRejection) -> None:
        """Take the losses."""
        super().__init__(rejection.message)
        self.rejection = rejection


class CheckpointError(Exception):
    """A checkpoint could not be written or read (exit code 1). The others are whole."""

    def __init__(self, message: str) -> None:
        """Take a sentence for people."""
        super().__init__(message)
        self.message = message

"""What a worker is asked to do at its next step boundary, and how training ended."""

from __future__ import annotations

import threading
from enum import StrEnum


class Request(StrEnum):
    """Something that a group does at a step boundary that all its ranks agree on."""

    STOP = "Stop"
    """Save where there is a checkpoint directory, and end."""
    REFORM = "Reform"
    """End with the state in memory, for another group to take over."""
    CHECKPOINT = "Checkpoint"
    """Save, and go on."""


class Outcome(StrEnum):
    """How training ended where nothing went wrong."""

    COMPLETE = "Complete"
    """The last step is done and saved."""
    STOPPED = "Stopped"
    """Ended at a step boundary, after a STOP or REFORM on any rank."""
    RELEASED = "Released"
    """Has handed its part of the state over to the others and is no longer needed."""


class Requests:
    """What a process was asked and has not done yet; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: set[Request] = set()

    def ask(self, request: Request) -> None:
        """Ask for something at the next step boundary; asking twice is asking once."""
        with self._lock:
            self._pending.add(request)

    def take(self) -> frozenset[Request]:
        """Return what was asked since the last call."""
        with self._lock:
            pending, self._pending = frozenset(self._pending), set()
        return pending

    def asks_to_leave(self) -> bool:
        """Whether something was asked that ends the group; takes nothing."""
        with self._lock:
            return bool(self._pending & {Request.STOP, Request.REFORM})

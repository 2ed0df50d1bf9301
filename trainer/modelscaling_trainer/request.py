"""What a worker is asked to do at its next step boundary or at once, and how training ended."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING

from modelscaling_trainer.errors import GroupLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Request(StrEnum):
    """Something that a group does at a step boundary that all its ranks agree on."""

    STOP = "Stop"
    """Save where there is a checkpoint directory, and end."""
    REFORM = "Reform"
    """End with the state in memory, for another group to take over."""
    GROW = "Grow"
    """Measure the validation loss, save, and end, for another group that trains a larger model."""
    CHECKPOINT = "Checkpoint"
    """Save, and go on."""


ENDING = frozenset({Request.STOP, Request.REFORM, Request.GROW})
"""What a group ends with."""


class Outcome(StrEnum):
    """How training ended where nothing went wrong."""

    COMPLETE = "Complete"
    """The last step is done and saved."""
    STOPPED = "Stopped"
    """Ended at a step boundary, as any rank was asked to."""
    RELEASED = "Released"
    """Has handed its part of the state over to the others and is no longer needed."""


class Requests:
    """What a process was asked of one group and has not done yet; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: set[Request] = set()
        self._abandoned: str | None = None
        self._reactions: list[Callable[[], None]] = []

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
            return bool(self._pending & ENDING)

    def abandon(self, why: str) -> None:
        """Have the process leave the group at once: one of its members is known to be gone."""
        with self._lock:
            if self._abandoned is None:
                self._abandoned = why
                for react in self._reactions:
                    react()

    @property
    def is_abandoned(self) -> bool:
        """Whether the group is to be left at once."""
        return self._abandoned is not None

    def check_abandoned(self) -> None:
        """Raise GroupLostError where the group is to be left at once."""
        if self._abandoned is not None:
            raise GroupLostError(self._abandoned)

    @contextmanager
    def on_abandon(self, react: Callable[[], None]) -> Iterator[None]:
        """Have `react` called, from any thread, when the group is abandoned inside; it must not
        block, nor use these requests.
        """
        with self._lock:
            self._reactions.append(react)
            if self._abandoned is not None:
                react()
        try:
            yield
        finally:
            with self._lock:
                self._reactions.remove(react)

"""The time in which a process is blocked because others have not sent yet what it needs.

Collectives happen in many places: in our own code, and inside of torch's fully_shard, pipelines and
tensor parallelism. On a CPU all of them come to one of three calls to block in, so those are timed;
torch has no hook for it.

On a GPU a collective is waited for by the device's stream and not by the process, so what blocks
here is only what the processes tell each other through the host.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
import torch.distributed._functional_collectives as functional

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_BLOCKING = ((dist.Work, "wait"), (functional, "wait_tensor"), (functional, "wait_tensors"))
"""The first for calls of torch.distributed, the others for what DTensor sends."""


class WaitClock:
    """Counts the time in which a process was blocked; a wait within another counts once."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        """Take a clock in seconds."""
        self._now = now
        self.is_waiting = False
        self.seconds = 0.0

    def timed(self, wait: Callable[..., Any]) -> Callable[..., Any]:
        """Return the same function, with its time counted."""

        def wait_and_count(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            if self.is_waiting:
                return wait(*arguments, **options)
            self.is_waiting = True
            started = self._now()
            try:
                return wait(*arguments, **options)
            finally:
                self.seconds += self._now() - started
                self.is_waiting = False

        return wait_and_count


_active: list[WaitClock] = []
"""The clocks that count now."""


def is_waiting() -> bool:
    """Whether this process is blocked in a wait that is being counted; for any thread."""
    return any(clock.is_waiting for clock in tuple(_active))


@contextmanager
def counted_waits() -> Iterator[WaitClock]:
    """Count what this process waits in torch.distributed; its training thread only may do so."""
    clock = WaitClock()
    with ExitStack() as originals:
        _active.append(clock)
        originals.callback(_active.remove, clock)
        for owner, name in _BLOCKING:
            original = getattr(owner, name)
            originals.callback(setattr, owner, name, original)
            setattr(owner, name, clock.timed(original))
        yield clock

"""Giving up the wait for a collective that nothing ends any more.

When a connection breaks, gloo tells the operations that wait for it, but for a send that was still
in its queue (`Pair::signalException` in transport/tcp/pair.cc passes over the unbound buffers of
`tx_`). Whoever waits for such a send, on a connection that is cut or whose peer has died, waits for
the timeout of the collective, minutes away. So a group that is abandoned is not waited for.

The thread of the process group that sends stays until that timeout. It only reads what it was to
send, and a process group waits for its threads when it is freed, so such a one is kept.

What torch waits for elsewhere cannot be left so: the sends and receives of a pipeline and what
DTensor sends. A worker that is stuck there is replaced by its agent (`agent/lateness.py`).
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch.distributed import distributed_c10d

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelscaling_trainer.request import Requests

_LOOK_EVERY = timedelta(seconds=0.5)
"""Its connections are cut when a group is abandoned, which ends all other waits within this."""

_kept: list[dist.ProcessGroup] = []
"""Process groups that have a thread which does not end."""


@contextmanager
def left_when_abandoned(requests: Requests) -> Iterator[None]:
    """Have the waits for gloo's collectives inside raise GroupLostError some time after the group
    was abandoned, where its connections, which are cut then, do not end them.
    """
    wait = dist.Work.wait

    def wait_or_leave(work: dist.Work, timeout: timedelta | None = None) -> bool:
        if timeout is not None or not _is_collective(work):
            return wait(work) if timeout is None else wait(work, timeout)
        was_abandoned = False
        while True:
            try:
                return wait(work, _LOOK_EVERY)
            except RuntimeError:
                # It may have ended just after the time was up: only now it says how.
                if work.is_completed():
                    return wait(work)
            if was_abandoned:
                _kept.extend(distributed_c10d._world.pg_map)  # noqa: SLF001
                requests.check_abandoned()
            was_abandoned = requests.is_abandoned

    dist.Work.wait = wait_or_leave  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        dist.Work.wait = wait  # type: ignore[method-assign]


def _is_collective(work: dist.Work) -> bool:
    """Return False for a send or receive: a timeout of its wait would break its connection."""
    try:
        work.get_future()
    except RuntimeError:
        return False
    return True

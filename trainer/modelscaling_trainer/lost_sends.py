"""Giving up a wait for others that nothing ends any more.

When a connection breaks, gloo tells the operations that wait for it, but for a send that was still
in its queue (`Pair::signalException` in transport/tcp/pair.cc passes over the unbound buffers of
`tx_`). Whoever waits for such a send, on a connection that is cut or whose peer has died, waits for
the timeout of the group, minutes away. So a group that is abandoned is not waited for.

The thread that sends stays until that timeout: one of the process group, or, for what is sent to a
single peer, the one that waits for it in the place of the thread that trains. It only reads what it
was to send. But a process group waits for its threads when it is freed, whichever of its sends they
are at, and so the groups that broke are kept until none can be.

What DTensor sends is waited for elsewhere in torch, and cannot be left so. A worker that is stuck
there is replaced by its agent (`agent/lateness.py`).
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch.distributed import distributed_c10d

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from modelscaling_trainer.request import Requests

_LOOK_EVERY = timedelta(seconds=0.25)
"""Its connections are cut when a group is abandoned, which ends all other waits within this."""

_MARGIN_S = 60.0
"""Beyond a group's timeout, until its threads have ended for sure."""


@dataclass(frozen=True, slots=True)
class _Broken:
    """A group that was lost, with its subgroups."""

    groups: tuple[dist.ProcessGroup, ...]
    keep_until: float


_kept: list[_Broken] = []


@contextmanager
def left_when_abandoned(requests: Requests, *, timeout_s: float) -> Iterator[None]:
    """Have the waits for what gloo sends and receives inside raise GroupLostError some time after
    the group was abandoned, where its connections, which are cut then, do not end them. `timeout_s`
    is that of the group.
    """
    _free_those_that_have_ended()
    wait = dist.Work.wait

    def wait_or_leave(work: dist.Work, timeout: timedelta | None = None) -> bool:
        if timeout is not None:
            return wait(work, timeout)
        wait_a_while = (_of_collective if _is_collective(work) else _of_single_peer)(wait, work)
        was_abandoned = False
        while True:
            ended = wait_a_while()
            if ended is not None:
                return ended
            if was_abandoned:
                requests.check_abandoned()
            was_abandoned = requests.is_abandoned

    dist.Work.wait = wait_or_leave  # type: ignore[assignment,method-assign]
    try:
        yield
    except BaseException:
        groups = tuple(distributed_c10d._world.pg_map)  # noqa: SLF001
        _kept.append(_Broken(groups, time.monotonic() + timeout_s + _MARGIN_S))
        raise
    finally:
        dist.Work.wait = wait  # type: ignore[method-assign]


def _free_those_that_have_ended() -> None:
    now = time.monotonic()
    _kept[:] = [broken for broken in _kept if now < broken.keep_until]


def _of_collective(wait: Callable[..., bool], work: dist.Work) -> Callable[[], bool | None]:
    """Return what waits for a collective; it returns None where a while was not enough."""

    def wait_a_while() -> bool | None:
        try:
            return wait(work, _LOOK_EVERY)
        except RuntimeError:
            # It may have ended just after the time was up: only now it says how.
            return wait(work) if work.is_completed() else None

    return wait_a_while


def _of_single_peer(wait: Callable[..., bool], work: dist.Work) -> Callable[[], bool | None]:
    """Return the same for a send or a receive, in a thread of its own: a timeout of its wait would
    break its connection.
    """
    ended: Future[bool] = Future()

    def wait_for_it() -> None:
        try:
            ended.set_result(wait(work))
        except Exception as error:  # noqa: BLE001 - is raised where it is waited for
            ended.set_exception(error)

    threading.Thread(target=wait_for_it, name="wait for a peer", daemon=True).start()

    def wait_a_while() -> bool | None:
        try:
            return ended.result(_LOOK_EVERY.total_seconds())
        except TimeoutError:
            return None

    return wait_a_while


def _is_collective(work: dist.Work) -> bool:
    """Return False for a send or receive."""
    try:
        work.get_future()
    except RuntimeError:
        return False
    return True

"""Forming and dissolving a group of processes, any number of times in the same process.

Each group has a TCP store of its own and its number as prefix, so that nothing of an earlier
group can be mistaken for this one's. Everything has a finite timeout; whatever fails between
processes is a GroupLostError, after which another group can be formed.
"""

from __future__ import annotations

import logging
import socket
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore  # not typed as exported by torch.distributed
from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import PrefixStore, Store

from modelscaling_trainer.connections import cut_on_failure
from modelscaling_trainer.errors import GroupLostError
from modelscaling_trainer.lost_sends import left_when_abandoned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from modelscaling_trainer.group import Group
    from modelscaling_trainer.request import Requests

_log = logging.getLogger(__name__)

FORM_TIMEOUT_S = 60.0
"""How long the members of a group may take to meet."""
COLLECTIVE_TIMEOUT_S = 300.0
"""How long the slowest member may lag behind; compiling and loading are in it."""
_SIGNS_OF_A_LOSS = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL")
_POLL_S = 0.005
_REACH_TIMEOUT_S = 2.0
"""For one look whether the store is there; a process that is to leave its group waits as long."""
_OPEN_TIMEOUT_S = 5.0
"""For the store to answer once it is there; a silent name server takes some of it."""


@contextmanager
def communication(what: str) -> Iterator[None]:
    """Turn what goes wrong between processes into a GroupLostError.

    torch raises RuntimeError for a peer that is gone (gloo), and subclasses of it for the store,
    the network and NCCL, so nothing but communication may be done inside.
    """
    try:
        yield
    except RuntimeError as error:
        first_line = str(error).splitlines()[0] if str(error) else repr(error)
        raise GroupLostError(f"lost the group while {what}: {first_line}") from error


@contextmanager
def computing_together(what: str) -> Iterator[None]:
    """Turn what goes wrong between processes while they compute into a GroupLostError; an error of
    the computation itself stays what it is.
    """
    try:
        yield
    except RuntimeError as error:
        cause = _peer_error(error)
        if cause is None:
            raise
        raise GroupLostError(f"lost the group while {what}: {cause}") from error


def _peer_error(error: BaseException) -> str | None:
    """Return the first line of what a backend said of a peer, through what torch's pipelines wrap
    around it; None for any other error.
    """
    link: BaseException | None = error
    while link is not None:
        text = str(link)
        if isinstance(link, dist.DistError) or any(sign in text for sign in _SIGNS_OF_A_LOSS):
            return text.splitlines()[0]
        link = link.__cause__ or link.__context__
    return None


@contextmanager
def process_group(
    group: Group,
    *,
    device: torch.device,
    on_store_port: Callable[[int], None],
    requests: Requests,
    form_timeout_s: float = FORM_TIMEOUT_S,
) -> Iterator[dist.ProcessGroup | None]:
    """Form a group of all that meet, those that only leave included, as torch's default one, and
    dissolve it at the end.

    Yields None, without a group, where `requests` asks to leave before all are there.

    Raises:
        GroupLostError: not all members came in time, one left again, or the group was abandoned.
    """
    deadline = _Deadline(form_timeout_s, requests)
    with (
        _dissolved_at_the_end(),
        cut_on_failure() as connections,
        requests.on_abandon(connections.keep_cut),
    ):
        if not _is_store_reachable(group, deadline):
            yield None
            return
        with communication("opening its store"):
            store = _open_store(group, form_timeout_s)
        if group.rank == 0:
            on_store_port(store.port)
        prefixed = PrefixStore(f"generation-{group.generation}-attempt-{group.attempt}", store)
        if not _meet(prefixed, group, deadline):
            yield None
            return
        with communication("connecting its members"):
            _name_as_the_first()
            dist.init_process_group(
                backend="gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
                store=prefixed,
                rank=group.rank,
                world_size=group.size,
                timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S),
                device_id=device if device.type == "cuda" else None,
            )
        _log.info(
            "formed a group",
            extra={
                "generation": group.generation,
                "attempt": group.attempt,
                "rank": group.rank,
                "size": group.size,
            },
        )
        if device.type == "cpu":
            with left_when_abandoned(requests, timeout_s=COLLECTIVE_TIMEOUT_S):
                yield dist.group.WORLD
        else:
            yield dist.group.WORLD


def all_gather(value: dict[str, Any], among: dist.ProcessGroup) -> list[dict[str, Any]]:
    """Return every rank's value, in the order of ranks.

    Raises:
        GroupLostError: a peer is gone.
    """
    values: list[Any] = [None] * among.size()
    with communication("exchanging what each member has"):
        dist.all_gather_object(values, value, group=among)
    return values


def all_reduce(tensor: torch.Tensor, among: dist.ProcessGroup) -> torch.Tensor:
    """Return the tensor after summing it over the ranks of a group, in place.

    Raises:
        GroupLostError: a peer is gone.
    """
    with communication("agreeing on a step"):
        dist.all_reduce(tensor, group=among)
    return tensor


class _Deadline:
    """Until when, and whether, a process waits for the others of its group."""

    def __init__(self, timeout_s: float, requests: Requests) -> None:
        self._timeout_s = timeout_s
        self._end = time.monotonic() + timeout_s
        self._requests = requests

    def wait_for(self, is_there: Callable[[], bool], describe: Callable[[], str]) -> bool:
        """Return True as soon as it is there, and False where the process is withdrawn.

        Raises:
            GroupLostError: it did not come in time, of which `describe` says what it was, or the
                group was abandoned.
        """
        while not is_there():
            self._requests.check_abandoned()
            if self._requests.asks_to_leave():
                return False
            if time.monotonic() > self._end:
                raise GroupLostError(f"{describe()} within {self._timeout_s:g} s")
            time.sleep(_POLL_S)
        return True


def _is_store_reachable(group: Group, deadline: _Deadline) -> bool:
    """Wait for the store of rank 0: torch's own wait for it can be neither ended nor trusted to
    keep to its timeout, as it tries again once that has passed.
    """
    if group.store_port is None:
        return True
    address = (group.store_host, group.store_port)

    def is_there() -> bool:
        try:
            socket.create_connection(address, timeout=_REACH_TIMEOUT_S).close()
        except OSError:
            return False
        return True

    place = f"{group.store_host}:{group.store_port}"
    return deadline.wait_for(is_there, lambda: f"the store at {place} could not be reached")


def _open_store(group: Group, timeout_s: float) -> TCPStore:
    store = TCPStore(
        host_name=group.store_host,
        port=group.store_port or 0,
        world_size=group.size,
        is_master=group.rank == 0,
        # It was there a moment ago. Should rank 0 have died since, nothing but this ends the wait.
        timeout=timedelta(seconds=_OPEN_TIMEOUT_S),
        wait_for_workers=False,
    )
    store.set_timeout(timedelta(seconds=timeout_s))
    return store


def _meet(store: Store, group: Group, deadline: _Deadline) -> bool:
    """Wait until all members are there; connecting them cannot be interrupted, this can."""
    everybody = [f"here-{rank}" for rank in range(group.size)]

    def describe() -> str:
        absent = [rank for rank, key in enumerate(everybody) if not store.check([key])]
        return f"ranks {absent} of generation {group.generation} did not come"

    with communication("waiting for its members"):
        store.set(everybody[group.rank], "1")
        return deadline.wait_for(lambda: store.check(everybody), describe)


def _name_as_the_first() -> None:
    """Have torch give the next group the name that it gives a process' first one.

    It names them by a count, under which members look for each other in the store, and which starts
    again only where a group is dissolved. One that failed to connect was none yet: this process
    would look for its next peers under another name than theirs, until the timeout.
    """
    distributed_c10d._world.group_count = 0  # noqa: SLF001


@contextmanager
def _dissolved_at_the_end() -> Iterator[None]:
    try:
        yield
    finally:
        _dissolve()


def _dissolve() -> None:
    if not dist.is_initialized():
        return
    try:
        dist.destroy_process_group()
    except RuntimeError:
        # The group may already be broken, which is why it is being dissolved.
        _log.info("the group was broken when it was dissolved", exc_info=True)

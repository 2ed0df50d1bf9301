"""Forming and dissolving a group of processes, any number of times in the same process.

Each group has a TCP store of its own and its number as prefix, so that nothing of an earlier
group can be mistaken for this one's. Everything has a finite timeout; whatever fails between
processes is a GroupLostError, after which another group can be formed.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore  # not typed as exported by torch.distributed
from torch.distributed.distributed_c10d import PrefixStore, Store

from modelscaling_trainer.errors import GroupLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from modelscaling_trainer.group import Group

_log = logging.getLogger(__name__)

FORM_TIMEOUT_S = 60.0
"""How long the members of a group may take to meet."""
COLLECTIVE_TIMEOUT_S = 300.0
"""How long the slowest member may lag behind; compiling and loading are in it."""
_POLL_S = 0.02


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
def process_group(
    group: Group,
    *,
    device: torch.device,
    on_store_port: Callable[[int], None],
    is_withdrawn: Callable[[], bool],
) -> Iterator[bool]:
    """Form a group as torch's default one, and dissolve it at the end.

    Yields False, without a group, where `is_withdrawn` becomes true before all are there.

    Raises:
        GroupLostError: not all members came in time, or one left again.
    """
    with communication("opening its store"):
        store = _open_store(group)
    if group.rank == 0:
        on_store_port(store.port)
    prefixed = PrefixStore(f"generation-{group.generation}", store)
    if not _meet(prefixed, group, is_withdrawn):
        yield False
        return
    try:
        with communication("connecting its members"):
            dist.init_process_group(
                backend="gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
                store=prefixed,
                rank=group.rank,
                world_size=group.mesh.size,
                timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S),
                device_id=device if device.type == "cuda" else None,
            )
        _log.info("formed a group", extra={"generation": group.generation, "rank": group.rank})
        yield True
    finally:
        _dissolve()


def all_gather(value: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every rank's value, in the order of ranks.

    Raises:
        GroupLostError: a peer is gone.
    """
    values: list[Any] = [None] * dist.get_world_size()
    with communication("exchanging what each member has"):
        dist.all_gather_object(values, value)
    return values


def all_reduce(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor after summing it over all ranks, in place.

    Raises:
        GroupLostError: a peer is gone.
    """
    with communication("agreeing on a step"):
        dist.all_reduce(tensor)
    return tensor


def _open_store(group: Group) -> TCPStore:
    return TCPStore(
        host_name=group.store_host,
        port=group.store_port or 0,
        world_size=group.mesh.size,
        is_master=group.rank == 0,
        timeout=timedelta(seconds=FORM_TIMEOUT_S),
        wait_for_workers=False,
    )


def _meet(store: Store, group: Group, is_withdrawn: Callable[[], bool]) -> bool:
    """Wait until all members are there; connecting them cannot be interrupted, this can."""
    deadline = time.monotonic() + FORM_TIMEOUT_S
    everybody = [f"here-{rank}" for rank in range(group.mesh.size)]
    with communication("waiting for its members"):
        store.set(everybody[group.rank], "1")
        while not store.check(everybody):
            if is_withdrawn():
                return False
            if time.monotonic() > deadline:
                absent = [rank for rank, key in enumerate(everybody) if not store.check([key])]
                raise GroupLostError(
                    f"ranks {absent} of generation {group.generation} did not come within "
                    f"{FORM_TIMEOUT_S:.0f} s"
                )
            time.sleep(_POLL_S)
    return True


def _dissolve() -> None:
    if not dist.is_initialized():
        return
    try:
        dist.destroy_process_group()
    except RuntimeError:
        # The group may already be broken, which is why it is being dissolved.
        _log.info("the group was broken when it was dissolved", exc_info=True)

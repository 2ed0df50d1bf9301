"""Sums and gathers between processes of one machine, by reading each other's memory.

gloo sends through sockets: two processes that sum 100 MB of gradients copy each byte into one and
out of it, on the processors that should compute. Here each copies what it needs out of the others'
memory (`process_vm_readv`), straight from any tensor. So there is no shared memory that would have
to be made, found, counted and freed as groups come and go.

It assumes a group whose processes have one user, one kernel and one namespace of processes, as
those of a pod have. `open_exchange` tries that out: all find that each can read each, or all do
without.

Every operation begins with a small collective of the group, which tells where the tensors are, and
ends with another: no result is seen, and no memory given back, before all have read what they need.
Therefore a peer that dies, hangs or is given up shows in a collective, as it does without this, or
here, as memory that is gone. Nobody writes into another process: one that is late, because it was
stopped while others left the group, may read what belongs to a later group, but never gets to use
it, as the collective at the end needs those that left.
"""

from __future__ import annotations

import ctypes
import os
import secrets
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

_CHUNK_BYTES = 512 << 10
"""Of one process is summed at once: what is copied is added while a processor's cache has it."""
_PROOF_BYTES = 32
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_PROCESSES = Path("/proc/self/ns/pid")
# prctl(2): processes of the same user may read this one, though they are not its ancestors, where
# the Yama module of the kernel asks for that.
_PR_SET_PTRACER = 0x59616D61
_PR_SET_PTRACER_ANY = ctypes.c_ulong(-1)


class _Range(ctypes.Structure):
    """Some of a process' memory (`struct iovec`)."""

    _fields_ = (("start", ctypes.c_void_p), ("bytes", ctypes.c_size_t))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a process is, with something to read there that nobody else has."""

    machine: tuple[str, int]
    process: int
    address: int
    proof: bytes


class HostExchange:
    """Collectives of tensors in the host's memory; all of a group call the same with equal sizes.

    Each of them:

    Raises:
        RuntimeError: a peer is gone.
    """

    def __init__(self, group: dist.ProcessGroup, processes: Sequence[int]) -> None:
        """Take the number of each rank's process."""
        self._group = group
        self._rank = group.rank()
        self._processes = processes
        self._total, self._part = torch.empty(2, _CHUNK_BYTES, dtype=torch.uint8)

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Give all ranks the sum of each of these flat tensors, in place, to the bit the same."""
        starts = self._tell(tensors)
        for index, tensor in enumerate(tensors):
            own = self._share(tensor, self._rank)
            offset = own.data_ptr() - tensor.data_ptr()
            self._sum([rank_starts[index] + offset for rank_starts in starts], own, own)
        self._meet()
        for rank, process in self._peers():
            for tensor, start in zip(tensors, starts[rank], strict=True):
                share = self._share(tensor, rank)
                _read(process, start + share.data_ptr() - tensor.data_ptr(), share)
        self._meet()

    def reduce_scatter(self, output: Tensor, summands: Tensor) -> None:
        """Set `output` to this rank's part of the sum of all ranks' `summands`."""
        starts = self._tell([summands])
        offset = self._rank * output.nbytes
        own = summands[self._rank * output.numel() :][: output.numel()]
        self._sum([start + offset for (start,) in starts], own, output)
        self._meet()

    def all_gather(self, output: Tensor, part: Tensor) -> None:
        """Set `output` to the parts of all ranks; this one's may be where it belongs already."""
        starts = self._tell([part])
        parts = output.chunk(len(self._processes))
        if parts[self._rank].data_ptr() != part.data_ptr():
            parts[self._rank].copy_(part)
        for rank, process in self._peers():
            _read(process, starts[rank][0], parts[rank])
        self._meet()

    def _tell(self, tensors: Sequence[Tensor]) -> list[list[int]]:
        """Return where each rank has its tensors, once all have them complete."""
        own = torch.tensor([tensor.data_ptr() for tensor in tensors])
        all_ranks = [torch.empty_like(own) for _ in self._processes]
        dist.all_gather(all_ranks, own, group=self._group)
        return [starts.tolist() for starts in all_ranks]

    def _meet(self) -> None:
        """Wait for all ranks."""
        dist.all_reduce(torch.zeros(1), group=self._group)

    def _peers(self) -> Iterator[tuple[int, int]]:
        return (each for each in enumerate(self._processes) if each[0] != self._rank)

    def _share(self, tensor: Tensor, rank: int) -> Tensor:
        """Return the part of a tensor that a rank sums."""
        size, ranks = tensor.numel(), len(self._processes)
        return tensor[size * rank // ranks : size * (rank + 1) // ranks]

    def _sum(self, starts: Sequence[int], own: Tensor, output: Tensor) -> None:
        """Sum what ranks have there, in their order, into `output`, which may be `own`."""
        length = _CHUNK_BYTES // own.itemsize
        for first in range(0, own.numel(), length):
            chunk = slice(first, first + length)
            offset = first * own.itemsize
            self._sum_chunk([start + offset for start in starts], own[chunk], output[chunk])

    def _sum_chunk(self, starts: Sequence[int], own: Tensor, output: Tensor) -> None:
        total = self._chunk(0, starts, own, self._total)
        for rank in range(1, len(starts)):
            is_last = rank == len(starts) - 1
            part = self._chunk(rank, starts, own, self._part)
            total = torch.add(total, part, out=output if is_last else _room(self._total, own))

    def _chunk(self, rank: int, starts: Sequence[int], own: Tensor, buffer: Tensor) -> Tensor:
        if rank == self._rank:
            return own
        chunk = _room(buffer, own)
        _read(self._processes[rank], starts[rank], chunk)
        return chunk


def open_exchange(group: dist.ProcessGroup) -> HostExchange | None:
    """Return an exchange among all of a group, who call this at once; None, on all of them, where
    some cannot read another's memory, or there are none.

    Raises:
        RuntimeError: a peer is gone.
    """
    if group.size() == 1:
        return None
    proof = ctypes.create_string_buffer(secrets.token_bytes(_PROOF_BYTES), _PROOF_BYTES)
    places: list[Any] = [None] * group.size()
    dist.all_gather_object(places, _place(proof), group=group)
    own = places[group.rank()]
    can_read = own is not None and all(_can_read(place, own) for place in places)
    # Nobody frees its proof before all have read it.
    answer = torch.tensor(int(can_read))
    dist.all_reduce(answer, op=dist.ReduceOp.MIN, group=group)
    return HostExchange(group, [place.process for place in places]) if answer.item() else None


def _place(proof: ctypes.Array[ctypes.c_char]) -> _Place | None:
    """Return where this process is; None where the system has no way to read another's memory."""
    if _reader() is None:
        return None
    try:
        machine = (_BOOT.read_text(), _PROCESSES.stat().st_ino)
    except OSError:
        return None
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY, 0, 0, 0)
    return _Place(
        machine=machine, process=os.getpid(), address=ctypes.addressof(proof), proof=proof.raw
    )


def _can_read(place: _Place | None, own: _Place) -> bool:
    """Whether this process can read another's memory, and finds there what the other has told."""
    if place is None or place.machine != own.machine:
        return False
    found = torch.empty(_PROOF_BYTES, dtype=torch.uint8)
    try:
        _read(place.process, place.address, found)
    except dist.DistNetworkError:
        return False
    return bytes(found.tolist()) == place.proof


def _room(buffer: Tensor, like: Tensor) -> Tensor:
    """Return the beginning of a buffer as a tensor like another."""
    return buffer[: like.nbytes].view(like.dtype)


def _read(process: int, start: int, into: Tensor) -> None:
    """Fill a tensor with what a process has in its memory.

    Raises:
        DistNetworkError: there is no such process or no such memory, or it must not be read.
    """
    read = _reader()
    assert read is not None
    done = 0
    while done < into.nbytes:
        here = _Range(into.data_ptr() + done, into.nbytes - done)
        there = _Range(start + done, into.nbytes - done)
        count = read(process, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
        if count <= 0:
            reason = os.strerror(ctypes.get_errno())
            raise dist.DistNetworkError(
                f"{into.nbytes - done} bytes of process {process} cannot be read: {reason}"
            )
        done += count


@cache
def _reader() -> Callable[..., int] | None:
    """Return process_vm_readv(2), which Linux has."""
    found: Any = getattr(ctypes.CDLL(None, use_errno=True), "process_vm_readv", None)
    if found is None:
        return None
    found.restype = ctypes.c_ssize_t
    ranges = (ctypes.POINTER(_Range), ctypes.c_ulong)
    found.argtypes = (ctypes.c_int, *ranges, *ranges, ctypes.c_ulong)
    read: Callable[..., int] = found
    return read

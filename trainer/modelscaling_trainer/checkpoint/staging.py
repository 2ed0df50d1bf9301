"""The copy of a process' share of a checkpoint, in the order of the part file's bytes.

The memory is kept between saves: touching new pages takes several times longer than copying. On a
CPU numpy copies and checks: it leaves the interpreter's lock and uses one thread, where torch in
a second thread would start another team of threads beside the one that trains.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_INTEGERS = {
    2: (torch.int16, np.uint16),
    4: (torch.int32, np.uint32),
    8: (torch.int64, np.uint64),
}
"""Integers of an element's width, to move and compare bits: numpy has no bfloat16."""


class Staging:
    """Memory that holds the copy of one share after the other."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._copies: list[Tensor] = []
        self._bytes = 0

    @property
    def data(self) -> memoryview:
        """The bytes of all copies, one after the other, until the next copy."""
        return self._memory.numpy().data[: self._bytes]

    def copy(self, tensors: Sequence[Tensor], ready: torch.cuda.Event | None) -> None:
        """Copy tensors, wide elements first, all on one device.

        `ready` is what the device must have done before; None on a CPU.
        """
        sizes = [tensor.nbytes for tensor in tensors]
        self._reserve(sum(sizes), is_pinned=ready is not None)
        self._copies = [
            self._memory[start:end].view(tensor.dtype).view(tensor.shape)
            for tensor, (start, end) in zip(
                tensors, pairwise(accumulate(sizes, initial=0)), strict=True
            )
        ]
        if ready is None:
            for copy, tensor in zip(self._copies, tensors, strict=True):
                np.copyto(_bits(copy), _bits(tensor))
        elif tensors:
            self._copy_from_device(tensors, ready)

    def prepare(self, tensors: Sequence[Tensor], ready: torch.cuda.Event | None) -> None:
        """Take the memory for copies of these tensors, by a copy that nobody uses."""
        if self._memory.nbytes < sum(tensor.nbytes for tensor in tensors):
            self.copy(tensors, ready)

    def is_finite(self) -> bool:
        """Whether every floating-point number of the copy is finite."""
        return all(map(_is_finite, self._copies))

    def _reserve(self, size: int, *, is_pinned: bool) -> None:
        self._copies = []
        self._bytes = size
        if self._memory.nbytes < size:
            self._memory = torch.empty(0, dtype=torch.uint8)  # before the larger one is taken
            self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=is_pinned)

    def _copy_from_device(self, tensors: Sequence[Tensor], ready: torch.cuda.Event) -> None:
        """Copy beside the device's computing, on a stream of its own."""
        stream = torch.cuda.Stream(tensors[0].device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            stream.wait_event(ready)
            for copy, tensor in zip(self._copies, tensors, strict=True):
                copy.copy_(tensor, non_blocking=True)
        stream.synchronize()


def _bits(tensor: Tensor) -> np.ndarray:
    return tensor.detach().view(_INTEGERS[tensor.element_size()][0]).numpy()


def _is_finite(tensor: Tensor) -> bool:
    """Compare bits as integers, without a temporary: among floating-point numbers of one sign,
    infinity and what is not a number have the largest ones, the positive ones when the sign counts
    as a sign, the negative ones when it counts as the highest bit.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    integer, unsigned = _INTEGERS[tensor.element_size()]
    signed_bits = _bits(tensor)
    infinity = int(torch.tensor(torch.inf, dtype=tensor.dtype).view(integer))
    sign = 1 << (8 * tensor.element_size() - 1)
    is_positive_finite = int(signed_bits.max()) < infinity
    return is_positive_finite and int(signed_bits.view(unsigned).max()) < infinity + sign

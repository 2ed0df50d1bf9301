"""The gradient of a step: accumulated over micro batches, summed over ranks, measured, clipped.

Gradients live in a few flat buffers that the parameters' `.grad` are views of. In the backward
pass of the last micro batch a buffer is sent off as soon as it is complete, so that the exchange
overlaps the rest of the pass, as in DistributedDataParallel. That class is not used because it is
tied to one process group: here groups come and go under a model that stays, and nothing has to be
rebuilt. It also divides by the number of ranks, where the sum is what is wanted: losses are
already scaled by the tokens of the global batch, and a sum is the same on every mesh.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist

from modelscaling_trainer.process_group import communication

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor
    from torch.nn import Parameter

    _Register = Callable[[Callable[[Tensor], None]], object]

_BUCKET_BYTES = 16 << 20
_EPSILON = 1e-6
"""Keeps the scale of a gradient of norm 0 finite, as torch.nn.utils.clip_grad_norm_ does."""


@dataclass(slots=True)
class _Bucket:
    flat: Tensor
    parameters: list[Parameter]
    missing: int = 0
    """Gradients that the current backward pass has not brought yet."""


class Gradient:
    """The gradient of all parameters, in buckets in the order in which a backward pass ends."""

    def __init__(
        self, parameters: Iterable[Parameter], *, bucket_bytes: int = _BUCKET_BYTES
    ) -> None:
        """Give each parameter its `.grad`; parameters come in the order of the forward pass."""
        self._buckets = [_bucket(group) for group in _group(list(parameters)[::-1], bucket_bytes)]
        self._exchanging = False
        self._next = 0
        self._works: list[dist.Work] = []
        self.own_square = 0.0
        """Squared norm of this rank's own gradient in the last exchange, before the sum."""
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                register = cast("_Register", parameter.register_post_accumulate_grad_hook)
                register(self._hook(bucket))

    def clear(self) -> None:
        """Set the gradient to 0, and forget an exchange that was not finished."""
        self._exchanging = False
        self._works = []
        for bucket in self._buckets:
            bucket.flat.zero_()

    def exchange_in_next_backward(self) -> None:
        """Sum over ranks while the next backward pass, the last of this step, goes on."""
        self._exchanging = True
        self._next = 0
        self.own_square = 0.0
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)

    def finish_exchange(self) -> None:
        """Wait until the sums are there.

        Raises:
            GroupLostError: a peer is gone.
        """
        self._exchanging = False
        works, self._works = self._works, []
        with communication("summing the gradient"):
            for work in works:
                work.wait()

    def clip(self, largest_norm: float) -> float:
        """Scale the gradient down to a norm, unless that is 0; return the norm it had."""
        flats = [bucket.flat for bucket in self._buckets]
        norms = torch.stack([torch.linalg.vector_norm(flat) for flat in flats])
        norm = float(torch.linalg.vector_norm(norms))
        if 0 < largest_norm < norm:
            for flat in flats:
                flat.mul_(largest_norm / (norm + _EPSILON))
        return norm

    def _hook(self, bucket: _Bucket) -> Callable[[Tensor], None]:
        def on_gradient(_: Tensor) -> None:
            if self._exchanging:
                bucket.missing -= 1
                self._send_complete()

        return on_gradient

    def _send_complete(self) -> None:
        """Send complete buckets off, in an order that is the same on all ranks."""
        while self._next < len(self._buckets) and self._buckets[self._next].missing == 0:
            flat = self._buckets[self._next].flat
            self._next += 1
            self.own_square += float(torch.linalg.vector_norm(flat)) ** 2
            with communication("summing the gradient"):
                work = dist.all_reduce(flat, async_op=True)
            assert work is not None
            self._works.append(work)


def _group(parameters: list[Parameter], bucket_bytes: int) -> list[list[Parameter]]:
    groups: list[list[Parameter]] = []
    size = bucket_bytes
    for parameter in parameters:
        if size >= bucket_bytes:
            groups.append([])
            size = 0
        groups[-1].append(parameter)
        size += parameter.nbytes
    return groups


def _bucket(parameters: list[Parameter]) -> _Bucket:
    first = parameters[0]
    total = sum(parameter.numel() for parameter in parameters)
    flat = torch.zeros(total, dtype=first.dtype, device=first.device)
    offset = 0
    for parameter in parameters:
        end = offset + parameter.numel()
        parameter.grad = flat[offset:end].view_as(parameter)
        offset = end
    return _Bucket(flat=flat, parameters=parameters)

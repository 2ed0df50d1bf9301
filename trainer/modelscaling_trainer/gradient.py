"""The gradient of whole weights: accumulated over micro batches, summed over the copies.

Gradients live in a few flat buffers that the parameters' `.grad` are views of. In the backward
pass of the last micro batch a buffer is sent off as soon as it is complete, so that the exchange
overlaps the rest of the pass, as in DistributedDataParallel. That class is not used because it is
tied to one process group: here groups come and go under a model that stays, and nothing has to be
rebuilt. It also divides by the number of ranks, where the sum is what is wanted: losses are
already scaled by the tokens of the global batch, and a sum is the same on every mesh.

Copies on one machine read each other's buffers after the pass instead (`host_exchange.py`): there
is nothing to overlap with, as both would be done by the same processors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist

from modelscaling_trainer.host_exchange import open_exchange
from modelscaling_trainer.process_group import communication

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor
    from torch.nn import Parameter

    from modelscaling_trainer.host_exchange import HostExchange

    _Register = Callable[[Callable[[Tensor], None]], object]

_BUCKET_BYTES = 16 << 20


@dataclass(slots=True)
class _Bucket:
    flat: Tensor
    parameters: list[Parameter]
    missing: int = 0
    """Gradients that the current backward pass has not brought yet."""


class Gradient:
    """The gradient of all parameters, in buckets in the order in which a backward pass ends."""

    def __init__(
        self, parameters: Mapping[str, Parameter], *, bucket_bytes: int = _BUCKET_BYTES
    ) -> None:
        """Give each parameter its `.grad`; parameters come in the order of the forward pass."""
        self._parameters = dict(parameters)
        backwards = list(self._parameters.values())[::-1]
        self._buckets = [_bucket(group) for group in _group(backwards, bucket_bytes)]
        self._copies: dist.ProcessGroup | None = None
        self._host: HostExchange | None = None
        self._exchanging = False
        self._next = 0
        self._works: list[dist.Work] = []
        self._own_square = 0.0
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                register = cast("_Register", parameter.register_post_accumulate_grad_hook)
                register(self._hook(bucket))

    @property
    def own_square(self) -> float | None:
        """Squared norm of this rank's own gradient in the last exchange, before the sum."""
        return self._own_square

    def join(self, copies: dist.ProcessGroup) -> None:
        """Sum over the processes that hold copies of the weights from now on.

        Raises:
            GroupLostError: a peer is gone.
        """
        self._copies = copies
        self._host = None
        if self._buckets and self._buckets[0].flat.device.type == "cpu":
            with communication("looking for copies on the same machine"):
                self._host = open_exchange(copies)

    def tensors(self) -> dict[str, Tensor]:
        """Return the gradient of each weight; writing into it changes it."""
        return {name: gradient_of(parameter) for name, parameter in self._parameters.items()}

    def clear(self) -> None:
        """Set the gradient to 0, and forget an exchange that was not finished."""
        self._exchanging = False
        self._works = []
        for bucket in self._buckets:
            bucket.flat.zero_()

    def before_backward(self, *, is_last: bool) -> None:
        """Sum over the copies while the last backward pass of a step goes on."""
        if is_last:
            self._begin_exchange()
            for bucket in self._buckets:
                bucket.missing = len(bucket.parameters)

    def after_schedule(self) -> None:
        """Sum over the copies after a pipeline's schedule, which has no one last backward pass."""
        self._begin_exchange()
        self._send_complete()

    def finish(self) -> None:
        """Wait until the sums are there.

        Raises:
            GroupLostError: a peer is gone.
        """
        is_due, self._exchanging = self._exchanging, False
        works, self._works = self._works, []
        with communication("summing the gradient"):
            if self._host is not None and is_due:
                self._host.all_reduce([bucket.flat for bucket in self._buckets])
            for work in works:
                work.wait()

    def _begin_exchange(self) -> None:
        self._exchanging = True
        self._next = 0
        self._own_square = 0.0
        for bucket in self._buckets:
            bucket.missing = 0

    def _hook(self, bucket: _Bucket) -> Callable[[Tensor], None]:
        def on_gradient(_: Tensor) -> None:
            if self._exchanging:
                bucket.missing -= 1
                self._send_complete()

        return on_gradient

    def _send_complete(self) -> None:
        """Send complete buckets off, in an order that is the same on all ranks."""
        assert self._copies is not None
        while self._next < len(self._buckets) and self._buckets[self._next].missing == 0:
            flat = self._buckets[self._next].flat
            self._next += 1
            self._own_square += float(torch.linalg.vector_norm(flat)) ** 2
            if self._copies.size() == 1 or self._host is not None:
                continue
            with communication("summing the gradient"):
                work = dist.all_reduce(flat, group=self._copies, async_op=True)
            assert work is not None
            self._works.append(work)


def gradient_of(parameter: Parameter) -> Tensor:
    """Return a parameter's gradient."""
    if parameter.grad is None:
        raise RuntimeError("a parameter has no gradient; every step sets all of them")
    return parameter.grad


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

"""What fully_shard exchanges on one machine, by `host_exchange.py` instead of gloo."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather, ReduceScatter

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch.distributed as dist
    from torch import Tensor

    from modelscaling_trainer.host_exchange import HostExchange


class _AnyMemory:
    """Takes what is exchanged from where all tensors come from."""

    def __init__(self, host: HostExchange) -> None:
        self._host = host

    def allocate(
        self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Return room for what is sent or received."""
        return torch.empty(*size, dtype=dtype, device=device)


class GatherOnHost(_AnyMemory, AllGather):
    """Gathers weights."""

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,  # noqa: ARG002 - is the one that was tried out
        async_op: bool = False,  # noqa: ARG002, FBT001, FBT002 - there is no work left to wait for
    ) -> None:
        """Do so before it returns."""
        self._host.all_gather(output_tensor, input_tensor)


class ReduceScatterOnHost(_AnyMemory, ReduceScatter):
    """Sums and cuts gradients."""

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,  # noqa: ARG002 - is the one that was tried out
        op: object,  # noqa: ARG002 - it is a sum
        async_op: bool = False,  # noqa: ARG002, FBT001, FBT002 - there is no work left to wait for
    ) -> None:
        """Do so before it returns."""
        self._host.reduce_scatter(output_tensor, input_tensor)

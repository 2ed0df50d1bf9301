"""An RMSNorm over a vector whose elements lie in several processes: OLMo-2's norms of all heads'
queries and keys, under tensor parallelism.

Each process has the elements of its heads. What they need of each other is one number a token, the
sum of squares, so they sum that up, where DTensor would gather the whole vectors.
"""

# ruff: noqa: N803, N806 - tensors carry their shapes in their names

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh


class SplitRMSNorm(nn.Module):
    """RMSNorm of model/decoder.py over the last axis of which each process of a mesh has a part."""

    def __init__(self, size: int, epsilon: float, mesh: DeviceMesh) -> None:
        """Take the size of the whole axis; the weight has no memory yet."""
        super().__init__()
        self.weight = nn.Parameter(
            distribute_tensor(
                torch.empty(size, device="meta"), mesh, [Shard(0)], src_data_rank=None
            )
        )
        self._size = size
        self._epsilon = epsilon
        self._group = mesh.get_group()

    def forward(self, x_BTE: Tensor) -> Tensor:
        """Return this process' part of the normed input in its own type."""
        assert isinstance(self.weight, DTensor)
        wide_BTE = x_BTE.float()
        square_BT1 = _sum_over(self._group, wide_BTE.square().sum(-1, keepdim=True))
        normed_BTE = wide_BTE * torch.rsqrt(square_BT1 / self._size + self._epsilon)
        return (normed_BTE * self.weight.to_local().float()).to(x_BTE.dtype)


def _sum_over(group: dist.ProcessGroup, x: Tensor) -> Tensor:
    return cast("Tensor", _Sum.apply(x, group))


class _Sum(torch.autograd.Function):
    """The sum over the processes of a group; as all use it, so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:  # noqa: ANN401
        ctx.group = group
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        total = gradient.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None

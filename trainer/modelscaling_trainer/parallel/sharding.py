"""Fully sharded weights: torch's fully_shard, block by block.

Each process keeps a part of every weight, gradient and moment in float32. A block's weights are
gathered when it computes, in the compute type, and its gradient is summed and cut at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch._dynamo  # the first use of fully_shard would import it: seconds, in a group that waits
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from modelscaling_trainer.host_exchange import open_exchange
from modelscaling_trainer.parallel.sharding_on_host import GatherOnHost, ReduceScatterOnHost

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from modelscaling_trainer.model.decoder import Decoder


def shard_weights(stage: Decoder, mesh: DeviceMesh, *, keeps_gathered: bool) -> None:
    """Shard a stage over a mesh, of two dimensions where there are copies (the outer one).

    `keeps_gathered` keeps a block's weights gathered from its forward to its backward pass: more
    memory, less communication. Gradients are summed, not averaged: losses are already scaled by
    the tokens of the global batch. All processes of the mesh do this at once.

    Raises:
        RuntimeError: a peer is gone.
    """
    host = open_exchange(mesh.get_group(mesh.ndim - 1)) if mesh.device_type == "cpu" else None
    policy = (
        MixedPrecisionPolicy()
        if stage.compute_dtype == torch.float32
        else MixedPrecisionPolicy(
            param_dtype=stage.compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    )
    for module in (*stage.blocks(), stage):
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=not keeps_gathered)
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum
        if host is not None:
            module.set_custom_all_gather(GatherOnHost(host))
            module.set_custom_reduce_scatter(ReduceScatterOnHost(host))


def sum_over_copies_in_next_backward(stage: Decoder, *, is_due: bool) -> None:
    """Sum the gradient over the copies of the weights in the next backward pass, or not yet."""
    assert isinstance(stage, FSDPModule)
    stage.set_requires_all_reduce(is_due)

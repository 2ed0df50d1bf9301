"""Tensor parallelism: each matrix product of a layer cut over the processes of the tensor axis.

The cut is Megatron's (Shoeybi et al. 2019) with sequence parallelism (Korthikanti et al. 2022),
done by torch's DTensor: the first product of a pair is cut by columns and the second by rows;
between the pairs each process holds its part of the tokens. The vocabulary is cut too, and the
loss is computed on cut logits. What torch has no part for is a key/value head that several
processes share.
"""

# ruff: noqa: N803, N806 - tensors carry their shapes in their names

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor.parallel import ParallelStyle

    from modelscaling_trainer.model.decoder import Decoder


def cut_products(stage: Decoder, mesh: DeviceMesh) -> None:
    """Cut a stage over a mesh of one dimension; its parameters become DTensors."""
    shape = stage.shape
    layer_plan = _layer_plan(shares_heads=shape.kv_heads < mesh.size())
    plan: dict[str, ParallelStyle] = {
        f"layers.{index}.{name}": style
        for index in stage.layers
        for name, style in layer_plan.items()
    }
    if stage.is_first:
        plan["embed_tokens"] = RowwiseParallel(
            input_layouts=Replicate(), output_layouts=Shard(1), use_local_output=True
        )
    if stage.is_last:
        plan["norm"] = SequenceParallel()
        plan["lm_head"] = ColwiseParallel(
            input_layouts=Shard(1), output_layouts=Shard(-1), use_local_output=False
        )
    # Nothing is sent: the weights are set afterwards.
    parallelize_module(stage, mesh, plan, src_data_rank=None)
    stage.tie()
    if shape.kv_heads < mesh.size():
        for layer in stage.blocks():
            layer.self_attn.key_value_heads = _SharedHeads(
                kv_heads=shape.kv_heads, size=shape.head_size, mesh=mesh
            )


def _layer_plan(*, shares_heads: bool) -> dict[str, ParallelStyle]:
    gathered = PrepareModuleInput(
        input_layouts=(Shard(1), None, None), desired_input_layouts=(Replicate(), None, None)
    )
    return {
        "input_layernorm": SequenceParallel(),
        "self_attn": gathered,
        "self_attn.q_proj": ColwiseParallel(),
        # Heads that are shared stay DTensors, for _SharedHeads to gather.
        "self_attn.k_proj": ColwiseParallel(use_local_output=not shares_heads),
        "self_attn.v_proj": ColwiseParallel(use_local_output=not shares_heads),
        "self_attn.o_proj": RowwiseParallel(output_layouts=Shard(1)),
        "post_attention_layernorm": SequenceParallel(),
        "mlp": PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)),
        "mlp.gate_proj": ColwiseParallel(),
        "mlp.up_proj": ColwiseParallel(),
        "mlp.down_proj": RowwiseParallel(output_layouts=Shard(1)),
    }


class _SharedHeads:
    """The key/value heads that a process' query heads need, where there are fewer such heads than
    processes: each computes a part of a head, all are gathered, each takes its own.
    """

    def __init__(self, *, kv_heads: int, size: int, mesh: DeviceMesh) -> None:
        first = mesh.get_local_rank() * kv_heads // mesh.size()
        self._elements = slice(first * size, (first + 1) * size)

    def __call__(self, projected_BTE: Tensor) -> Tensor:
        """Return (B, T, D): one head, as a process has fewer query heads than a group."""
        assert isinstance(projected_BTE, DTensor)
        # Each process has the gradient of what it used only: the whole is the sum.
        whole_BTE = projected_BTE.redistribute(placements=[Replicate()]).to_local(
            grad_placements=[Partial()]
        )
        return whole_BTE[..., self._elements]

"""Tensor parallelism: each matrix product of a layer cut over the processes of the tensor axis.

The cut is Megatron's (Shoeybi et al. 2019) with sequence parallelism (Korthikanti et al. 2022),
done by torch's DTensor: the first product of a pair is cut by columns and the second by rows;
between the pairs each process holds its part of the tokens. The vocabulary is cut too, and the
loss is computed on cut logits. What torch has no part for is a key/value head that several
processes share, and a norm over heads that lie in several processes (split_norm.py).
"""

# ruff: noqa: N803, N806 - tensors carry their shapes in their names

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from modelscaling.layout import LORA_A, LORA_B
from modelscaling_trainer.parallel.split_norm import SplitRMSNorm

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor.parallel import ParallelStyle
    from torch.distributed.tensor.placement_types import Placement

    from modelscaling.shape import ModelShape
    from modelscaling_trainer.model.decoder import Attention, Decoder


def cut_products(stage: Decoder, mesh: DeviceMesh) -> None:
    """Cut a stage over a mesh of one dimension; its parameters become DTensors."""
    shape = stage.shape
    layer_plan = _layer_plan(norm_after=shape.norm_after)
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
    for layer in stage.blocks():
        _cut_heads(layer.self_attn, shape, mesh)


def _cut_heads(attention: Attention, shape: ModelShape, mesh: DeviceMesh) -> None:
    """Have attention compute with the heads of this process."""
    if shape.qk_norm:
        attention.q_norm, attention.k_norm = (
            SplitRMSNorm(heads * shape.head_size, shape.norm_epsilon, mesh)
            for heads in (shape.heads, shape.kv_heads)
        )
    if shape.kv_heads < mesh.size():
        attention.key_value_heads = _SharedHeads(
            kv_heads=shape.kv_heads, size=shape.head_size, mesh=mesh
        )


def _layer_plan(*, norm_after: bool) -> dict[str, ParallelStyle]:
    gathered = PrepareModuleInput(
        input_layouts=(Shard(1), None, None), desired_input_layouts=(Replicate(), None, None)
    )
    # What is after is added to the residual stream, which is no DTensor.
    norm = SequenceParallel(use_local_output=norm_after)
    first, second = (
        ("post_attention_layernorm", "post_feedforward_layernorm")
        if norm_after
        else ("input_layernorm", "post_attention_layernorm")
    )
    return {
        first: norm,
        second: norm,
        "self_attn": gathered,
        "self_attn.q_proj": _Columns(),
        "self_attn.k_proj": _Columns(),
        "self_attn.v_proj": _Columns(),
        "self_attn.o_proj": _Rows(output_layouts=Shard(1)),
        "mlp": PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)),
        "mlp.gate_proj": _Columns(),
        "mlp.up_proj": _Columns(),
        "mlp.down_proj": _Rows(output_layouts=Shard(1)),
    }


class _Columns(ColwiseParallel):
    """A product cut by columns; of its adapter, B is cut as the weight and A is whole."""

    def _partition_linear_fn(self, name: str, module: nn.Module, device_mesh: DeviceMesh) -> None:
        with _cut_adapter(module, device_mesh, {LORA_A: Replicate(), LORA_B: Shard(0)}):
            super()._partition_linear_fn(name, module, device_mesh)  # type: ignore[no-untyped-call]


class _Rows(RowwiseParallel):
    """A product cut by rows; of its adapter, A is cut as the weight and B is whole."""

    def _partition_linear_fn(self, name: str, module: nn.Module, device_mesh: DeviceMesh) -> None:
        with _cut_adapter(module, device_mesh, {LORA_A: Shard(1), LORA_B: Replicate()}):
            super()._partition_linear_fn(name, module, device_mesh)  # type: ignore[no-untyped-call]


@contextmanager
def _cut_adapter(
    module: nn.Module, mesh: DeviceMesh, placements: Mapping[str, Placement]
) -> Iterator[None]:
    """Hide the adapter of a product, if it has one, from what cuts the rest, then cut it."""
    hidden = {name: module._parameters.pop(name, None) for name in placements}  # noqa: SLF001
    yield
    for name, whole in hidden.items():
        if whole is not None:
            cut = distribute_tensor(whole, mesh, [placements[name]], src_data_rank=None)
            module.register_parameter(name, nn.Parameter(cut))


class _SharedHeads:
    """The key/value heads that a process' query heads need, where there are fewer such heads than
    processes: each computes a part of a head, all are gathered, each takes its own.
    """

    def __init__(self, *, kv_heads: int, size: int, mesh: DeviceMesh) -> None:
        self._mesh = mesh
        first = mesh.get_local_rank() * kv_heads // mesh.size()
        self._elements = slice(first * size, (first + 1) * size)

    def __call__(self, projected_BTE: Tensor) -> Tensor:
        """Return (B, T, D): one head, as a process has fewer query heads than a group."""
        cut_BTE = DTensor.from_local(projected_BTE, self._mesh, [Shard(-1)], run_check=False)
        # Each process has the gradient of what it used only: the whole is the sum.
        whole_BTE = cut_BTE.redistribute(placements=[Replicate()]).to_local(
            grad_placements=[Partial()]
        )
        return whole_BTE[..., self._elements]

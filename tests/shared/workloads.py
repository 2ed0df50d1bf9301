"""Workloads, shapes and meshes for tests of the plan."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from modelscaling.api.lora import LoraTarget
from modelscaling.api.parallelism import TensorPlacement
from modelscaling.api.training import ActivationCheckpointing, CompileMode, Precision
from modelscaling.mesh import Mesh
from modelscaling.plan import Workload
from modelscaling.shape import Lora, ModelShape


def make_shape(**changes: Any) -> ModelShape:
    """Return a small shape that every power of two up to 4 divides."""
    values: dict[str, Any] = {
        "layers": 4,
        "hidden_size": 64,
        "heads": 8,
        "kv_heads": 4,
        "head_size": 8,
        "feed_forward_size": 192,
        "vocabulary_size": 256,
        "context_length": 64,
        "tied_embeddings": True,
    }
    return ModelShape(**{**values, **changes})


def make_workload(**changes: Any) -> Workload:
    """Return the training of that shape on four pods; names of the shape change the shape."""
    shape = {name: changes.pop(name) for name in [*changes] if name in ModelShape.__annotations__}
    values: dict[str, Any] = {
        "shape": make_shape(**shape),
        "global_batch_size": 32,
        "micro_batch_size": None,
        "precision": Precision.FLOAT32,
        "activation_checkpointing": ActivationCheckpointing.NONE,
        "compile": CompileMode.AUTO,
        "replicas": 4,
        "processes_per_replica": 1,
        "tensor_placement": TensorPlacement.ACROSS_PODS,
        "computes_on_cpu": True,
        "device_memory": None,
        "device_memory_field": "spec.parallelism.deviceMemory",
    }
    return Workload(**{**values, **changes})


_FEW = st.integers(1, 3)


@st.composite
def _loras(draw: st.DrawFn) -> Lora:
    targets = draw(st.sets(st.sampled_from(LoraTarget), min_size=1))
    return Lora(rank=draw(_FEW), alpha=2.0, targets=tuple(target.value for target in targets))


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    """Draw small shapes whose sizes are odd as often as not."""
    kv_heads = draw(_FEW)
    return ModelShape(
        layers=draw(st.integers(1, 6)),
        hidden_size=draw(st.integers(1, 24)),
        heads=kv_heads * draw(_FEW),
        kv_heads=kv_heads,
        head_size=2 * draw(_FEW),
        feed_forward_size=draw(st.integers(1, 24)),
        vocabulary_size=draw(st.integers(1, 24)),
        context_length=draw(st.integers(1, 64)),
        tied_embeddings=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        norm_after=draw(st.booleans()),
        lora=draw(st.none() | _loras()),
    )


@st.composite
def meshes(draw: st.DrawFn) -> Mesh:
    """Draw small meshes with any of the axes."""
    pipeline = draw(_FEW)
    return Mesh(
        pipeline=pipeline,
        dataReplicate=draw(_FEW),
        dataShard=draw(_FEW),
        context=draw(st.integers(1, 2)),
        tensor=draw(_FEW),
        stagesPerProcess=draw(_FEW) if pipeline > 1 else 1,
    )

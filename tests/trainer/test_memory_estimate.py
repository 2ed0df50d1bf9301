"""The plan's estimate of what a layer keeps, against what autograd really keeps of the decoder."""

from __future__ import annotations

import pytest
import torch

from modelscaling.api.training import ActivationCheckpointing, Precision
from modelscaling.mesh import Mesh
from modelscaling.plan.memory import estimate_memory
from modelscaling_trainer.model.decoder import Decoder
from modelscaling_trainer.model.recompute import recompute
from tests.shared.workloads import make_workload

_DTYPES = {Precision.FLOAT32: torch.float32, Precision.BFLOAT16: torch.bfloat16}
_BATCH = 4


def _kept_bytes(
    layers: int, precision: Precision, mode: ActivationCheckpointing, family: dict[str, bool]
) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, weights left out."""
    shape = make_workload(layers=layers, context_length=128, **family).shape
    model = Decoder(shape, compute_dtype=_DTYPES[precision], recompute=recompute(mode))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    fixed = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in fixed:
            kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.zeros(_BATCH, shape.context_length, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.loss_sum(ids, ids)
    return sum(storage.nbytes() for storage in kept.values())


def _estimated_bytes(
    layers: int, precision: Precision, mode: ActivationCheckpointing, family: dict[str, bool]
) -> int:
    workload = make_workload(
        replicas=1,
        layers=layers,
        context_length=128,
        global_batch_size=_BATCH,
        precision=precision,
        activation_checkpointing=mode,
        **family,
    )
    memory = estimate_memory(workload, Mesh())
    return memory.activations + memory.gathered


@pytest.mark.parametrize(
    "family",
    [{}, {"qkv_bias": True}, {"qk_norm": True, "norm_after": True}],
    ids=["llama", "qwen2.5", "olmo-2"],
)
@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("mode", [ActivationCheckpointing.NONE, ActivationCheckpointing.FULL])
def test_a_layer_keeps_what_the_plan_says(
    precision: Precision, mode: ActivationCheckpointing, family: dict[str, bool]
) -> None:
    # The difference of two depths leaves out what is kept outside of the layers.
    kept = _kept_bytes(4, precision, mode, family) - _kept_bytes(2, precision, mode, family)
    estimated = _estimated_bytes(4, precision, mode, family)
    estimated -= _estimated_bytes(2, precision, mode, family)

    assert kept == pytest.approx(estimated, rel=0.01)

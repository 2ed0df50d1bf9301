"""The first weights of a run: a function of its seed and each parameter's name.

No rank, mesh or order of creation is in it, so that any process can make any parameter by itself.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

from modelscaling.layout import LORA_A, LORA_B, Region

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from modelscaling.layout import Piece
    from modelscaling_trainer.shard import Shard

FIRST_DEVIATION = 0.02
_BIAS = ".bias"
_INTO_RESIDUAL = ("o_proj.weight", "down_proj.weight")


@torch.no_grad()
def set_initial_weights(weights: Mapping[str, Shard], *, seed: int, layers: int) -> None:
    """Set matrices to normal draws, norms to 1 and biases to 0."""
    for name, shard in weights.items():
        shard.tensor.copy_(initial_values(name, shard.piece, seed=seed, layers=layers))


def initial_values(name: str, piece: Piece, *, seed: int | str, layers: int) -> Tensor:
    """Return the first values of a piece of a weight, float32, on the CPU.

    The deviation is 0.02; that of matrices which add to the residual stream is divided by
    √(2 · layers), so that its size does not grow with depth (GPT-2). Of an adapter A has draws of
    a deviation of 1/√(3 · inputs), that of PEFT's, and B is 0.
    """
    shape, region = piece.shape, piece.region
    if name.endswith(LORA_B):
        return torch.zeros(region.size)
    if len(shape) == 1:
        return torch.full(region.size, 0.0 if name.endswith(_BIAS) else 1.0)
    scale = (2 * layers) ** -0.5 if name.endswith(_INTO_RESIDUAL) else 1.0
    deviation = (3 * shape[1]) ** -0.5 if name.endswith(LORA_A) else FIRST_DEVIATION * scale
    whole = Region((0,) * len(shape), shape)
    return _normal(shape, name, seed)[region.within(whole)] * deviation


def _normal(shape: tuple[int, ...], name: str, seed: int | str) -> Tensor:
    """Return draws that are made on the CPU: the same on every device."""
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(shape, generator=generator, dtype=torch.float32)

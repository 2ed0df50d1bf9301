"""The first weights of a run: a function of its seed and each parameter's name.

No rank, mesh or order of creation is in it, so that any process can make any parameter by itself.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

_DEVIATION = 0.02
_INTO_RESIDUAL = ("o_proj.weight", "down_proj.weight")


@torch.no_grad()
def set_initial_weights(model: nn.Module, *, seed: int, layers: int) -> None:
    """Set matrices to normal draws and norms to 1.

    The deviation is 0.02; that of matrices which add to the residual stream is divided by
    √(2 · layers), so that its size does not grow with depth (GPT-2).
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0)
            continue
        scale = (2 * layers) ** -0.5 if name.endswith(_INTO_RESIDUAL) else 1.0
        parameter.copy_(_normal(parameter, name, seed) * (_DEVIATION * scale))


def _normal(parameter: Tensor, name: str, seed: int) -> Tensor:
    """Return draws that are made on the CPU: the same on every device."""
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(parameter.shape, generator=generator, dtype=torch.float32)

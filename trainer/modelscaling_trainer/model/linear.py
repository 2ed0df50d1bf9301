"""Matrix products, and those with a small product beside them (LoRA, Hu et al. 2021).

Letters of the shapes: B batch, T tokens, I inputs, O outputs, R rank.
"""

# ruff: noqa: N806 - tensors carry their shapes in their names

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

    from modelscaling.shape import ModelShape


class Linear(nn.Linear):
    """A matrix product in the type of its input."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias)

    def reset_parameters(self) -> None:
        """Draw nothing: weights are set by name, and on the meta device torch draws in Python."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the base class' name
        """Return input · weightᵀ + bias."""
        weight = self.weight.to(input.dtype)
        # A bias that torch's Linear does not have is None there, though its stubs deny it.
        bias: Tensor | None = self.bias
        return F.linear(input, weight, None if bias is None else bias.to(input.dtype))


class AdaptedLinear(Linear):
    """A matrix product whose weight stays as it is, and a product of low rank that is trained."""

    def __init__(
        self, inputs: int, outputs: int, *, rank: int, scale: float, bias: bool = False
    ) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self._scale = scale
        self.lora_A = nn.Parameter(torch.empty(rank, inputs))
        self.lora_B = nn.Parameter(torch.empty(outputs, rank))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the base class' name
        """Return input · (weight + scale · B·A)ᵀ + bias."""
        small_BTR = F.linear(input, self.lora_A.to(input.dtype))
        small_BTO = F.linear(small_BTR, self.lora_B.to(input.dtype))
        return super().forward(input) + self._scale * small_BTO


def projection(
    shape: ModelShape, name: str, inputs: int, outputs: int, *, bias: bool = False
) -> Linear:
    """Return the matrix product of a layer that has a name in transformers, with an adapter where
    the shape says so.
    """
    lora = shape.lora
    if lora is None or name not in lora.targets:
        return Linear(inputs, outputs, bias=bias)
    return AdaptedLinear(inputs, outputs, rank=lora.rank, scale=lora.scale, bias=bias)

"""The weights of a model with its adapters merged into them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from modelscaling.layout import LORA_A, LORA_B, Region, weights

if TYPE_CHECKING:
    from torch import Tensor

    from modelscaling.shape import ModelShape
    from modelscaling_trainer.weight_source import WeightSource


class MergedWeights:
    """A WeightSource of the model that computes as another does with its adapters."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self._sizes = weights(source.shape)

    @property
    def shape(self) -> ModelShape:
        """The model's, which has no adapters."""
        return replace(self._source.shape, lora=None)

    def read(self, name: str, region: Region) -> Tensor:
        """Return a block of W + alpha / rank · B·A, or of a weight without an adapter, as float32
        on the CPU.

        Raises:
            CheckpointError: it cannot be read.
        """
        lora = self._source.shape.lora
        block = self._source.read(name, region)
        a, b = (name.removesuffix("weight") + end for end in (LORA_A, LORA_B))
        if lora is None or a not in self._sizes or not name.endswith(".weight"):
            return block
        (row, column), (rows, columns) = region.offset, region.size
        left = self._source.read(b, Region((row, 0), (rows, lora.rank)))
        right = self._source.read(a, Region((0, column), (lora.rank, columns)))
        return block.add_(left @ right, alpha=lora.scale)

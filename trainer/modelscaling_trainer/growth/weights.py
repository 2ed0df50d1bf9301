"""The weights of a grown model, made block by block from those of the old one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from modelscaling.growth.tensor_growth import Kind
from modelscaling.layout import Piece
from modelscaling_trainer.growth.filling import fresh_values, grow_into
from modelscaling_trainer.shard import Shard

if TYPE_CHECKING:
    from torch import Tensor

    from modelscaling.growth.plan import GrowthPlan
    from modelscaling.layout import Region
    from modelscaling.shape import ModelShape
    from modelscaling_trainer.weight_source import WeightSource


class GrownWeights:
    """A WeightSource of what another grows to; what is drawn is a function of the seed."""

    def __init__(self, source: WeightSource, plan: GrowthPlan, *, seed: int) -> None:
        self._source = source
        self._growth = plan.growth()
        self._seed = seed
        self.shape: ModelShape = plan.shape

    def fill(self, name: str, shard: Shard) -> None:
        """Fill a shard of a weight; no more of the old one is read than it is made from.

        Raises:
            CheckpointError: the old model is damaged; the shard may be half filled.
        """
        tensor = self._growth[name]
        held = tensor.needed(shard.piece.region, Kind.MODEL)
        grow_into(
            shard,
            tensor,
            Kind.MODEL,
            source=None if held is None else self._source.read(tensor.source, held),
            held=held,
            fresh=partial(fresh_values, name, shard, seed=self._seed, layers=self.shape.layers),
        )

    def read(self, name: str, region: Region) -> Tensor:
        """Return a block of a weight, float32 on the CPU.

        Raises:
            CheckpointError: the old model is damaged.
        """
        piece = Piece(shape=self._growth[name].after, region=region, copy=0, copies=1)
        block = Shard(torch.empty(region.size), piece)
        self.fill(name, block)
        return block.tensor

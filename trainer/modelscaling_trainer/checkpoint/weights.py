"""The weights of a checkpoint, block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelscaling.layout import Piece, weights
from modelscaling.shape import ModelShape
from modelscaling_trainer.shard import Shard
from modelscaling_trainer.state import MODEL

if TYPE_CHECKING:
    from torch import Tensor

    from modelscaling.layout import Region
    from modelscaling_trainer.checkpoint.catalog import Checkpoint


class CheckpointWeights:
    """A checkpoint as a WeightSource."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.shape = ModelShape.from_fields(checkpoint.model)
        self._sizes = weights(self.shape)

    def read(self, name: str, region: Region) -> Tensor:
        """Return a block of a weight, float32 on the CPU.

        Raises:
            CheckpointError: it is damaged.
        """
        block = torch.empty(region.size)
        piece = Piece(shape=self._sizes[name], region=region, copy=0, copies=1)
        self._checkpoint.load({f"{MODEL}.{name}": Shard(block, piece)})
        return block

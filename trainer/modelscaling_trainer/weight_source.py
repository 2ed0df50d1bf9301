"""Where weights come from that this process has not trained: a checkpoint, or a directory of
another program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from modelscaling.layout import Region
    from modelscaling.shape import ModelShape


class WeightSource(Protocol):
    """The weights of a whole model, of which any block can be read by itself."""

    @property
    def shape(self) -> ModelShape:
        """The model's."""
        ...

    def read(self, name: str, region: Region) -> Tensor:
        """Return a block of a weight, by its name in modelscaling.layout, as float32 on the CPU.

        Raises:
            CheckpointError: it cannot be read.
        """
        ...

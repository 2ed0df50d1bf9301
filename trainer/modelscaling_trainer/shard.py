"""A tensor's part in this process, and which part of the whole it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from modelscaling.layout import Piece


@dataclass(frozen=True, slots=True)
class Shard:
    """What one process holds of a tensor of the run's state."""

    tensor: Tensor
    """Of the size of `piece.region`; writing into it changes the state."""
    piece: Piece

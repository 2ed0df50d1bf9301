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


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that is in this process; both share their memory."""
    # A DTensor has the method, and its class takes seconds to import.
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor

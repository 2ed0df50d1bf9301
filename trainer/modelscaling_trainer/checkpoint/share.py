"""Who writes what: each element of the state once, the work spread over all that hold it.

A pure function of a tensor's name and piece, so every process finds its own share without asking
the others, and without going through all of them. Nothing is balanced across tensors: that would
need every holder of a tensor to know the same list of others, which a pipeline's stages do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

from modelscaling.layout import Region

if TYPE_CHECKING:
    from modelscaling.layout import Piece

LEAST_BYTES = 1 << 18
"""A region is not cut into smaller blocks than this; vectors are not worth it."""
MOST_BLOCKS = 16
"""A region is not cut into more blocks than this: thousands of copies would make an index of
millions of them."""


def share(
    name: str, piece: Piece, *, element_bytes: int, least_bytes: int = LEAST_BYTES
) -> Region | None:
    """Return the block of its region that one of the copies writes, in the whole tensor's
    coordinates; None where others write all of it.

    A large region is cut along its first dimension into a block for each copy. Where there are
    fewer blocks than copies, the tensor's name says whose they are, so that they spread too.
    """
    region = piece.region
    if not region.elements:
        return None
    rows = region.size[0]
    worth = region.elements * element_bytes // least_bytes
    blocks = max(1, min(piece.copies, rows, worth, MOST_BLOCKS))
    block = (piece.copy - crc32(name.encode())) % piece.copies
    if block >= blocks:
        return None
    start, end = block * rows // blocks, (block + 1) * rows // blocks
    return Region(
        (region.offset[0] + start, *region.offset[1:]),
        (end - start, *region.size[1:]),
    )

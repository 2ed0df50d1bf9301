"""Going through a tensor by blocks of rows, which lie one after the other in a file, so that large
tables need not be in memory whole.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from modelscaling.layout import Region

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_ELEMENTS = 1 << 24
"""64 MiB in float32."""


def row_blocks(shape: tuple[int, ...], *, most_elements: int = _MOST_ELEMENTS) -> Iterator[Region]:
    """Yield blocks that make up a tensor, in order; of at least one row (shape[0] rows in all)."""
    count, rest = shape[0], shape[1:]
    height = max(1, most_elements // max(1, prod(rest)))
    for start in range(0, count, height):
        rows = min(height, count - start)
        yield Region((start, *(0 for _ in rest)), (rows, *rest))

"""The processor's peak as a contender, so that it is measured under what the others meet too."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from bench.contest import Contender

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.contest import Place

_SIZE = 2048
FLOPS = 2 * _SIZE**3
"""Of a turn."""


def matrix_product(dtype: torch.dtype) -> Contender:
    """Return one square matrix product on one thread."""
    return Contender(name="matrix product", train=partial(_multiply, dtype=dtype))


def _multiply(_: Place, end_turn: Callable[[], None], *, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    matrix = torch.ones(_SIZE, _SIZE, dtype=dtype)
    product = torch.empty_like(matrix)
    while True:
        torch.mm(matrix, matrix, out=product)
        end_turn()

"""Arithmetic that is the same whatever the size: products are summed in the order of their inner
axis, and each element of an activation is computed alike.

A library picks its kernel by the sizes, and a kernel may sum in another order: then zeros between
the same numbers do change bits. MKL on AVX-512, for one, has other orders for fewer than 4 rows,
for fewer than 16 columns, and for inner axes between 193 and 383, which it cuts in halves.
And torch's SiLU takes another exponential for the elements that do not fill a vector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class InOrder(TorchFunctionMode):
    """While it is entered, the decoder computes so."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if function is F.linear:
            product = _product(args[0], args[1].t())
            return product if len(args) < 3 or args[2] is None else product + args[2]
        if function is torch.bmm:
            return _product(args[0], args[1])
        if function is F.silu:
            return args[0] / (1 + torch.exp(-args[0]))
        return function(*args, **(kwargs or {}))


def _product(left: Tensor, right: Tensor) -> Tensor:
    total = left.new_zeros(*left.shape[:-1], right.shape[-1])
    for index in range(left.shape[-1]):
        total += left[..., index, None] * right[..., index, None, :]
    return total

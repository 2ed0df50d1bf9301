"""Leaving a pass through the model in its middle: a process that computes does not see that a peer
is gone before the next collective, which may be a second away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def checking(check: Callable[[], None]) -> Callable[[Tensor], Tensor]:
    """Return an identity that calls `check` when it is passed in the forward pass, and again in the
    backward pass; what that raises ends the pass.
    """

    def check_gradient(_: Tensor) -> None:
        check()

    def check_both_ways(x: Tensor) -> Tensor:
        check()
        if x.requires_grad:
            x.register_hook(check_gradient)  # type: ignore[no-untyped-call]
        return x

    return check_both_ways

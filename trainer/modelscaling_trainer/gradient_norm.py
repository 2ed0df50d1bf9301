"""The norm of the whole gradient, from what each process has of it, and clipping to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from modelscaling_trainer.shard import Shard

_EPSILON = 1e-6
"""Keeps the scale of a gradient of norm 0 finite, as torch.nn.utils.clip_grad_norm_ does."""


def share_of_square(gradient: Mapping[str, Tensor], weights: Mapping[str, Shard]) -> float:
    """Return this process' share of the squared norm: over all processes they add up to it.

    What several processes hold alike is divided among them.
    """
    if not gradient:
        return 0.0  # all that is held here is frozen
    norms = torch._foreach_norm(list(gradient.values()))  # noqa: SLF001 - as torch's own clipping
    squares = torch.stack(norms).double().square()
    copies = [weights[name].piece.copies for name in gradient]
    return float((squares / torch.tensor(copies, device=squares.device)).sum())


def clip(gradient: Mapping[str, Tensor], *, norm: float, largest_norm: float) -> None:
    """Scale a gradient of a norm down to the largest one, unless that is 0."""
    if gradient and 0 < largest_norm < norm:
        torch._foreach_mul_(list(gradient.values()), largest_norm / (norm + _EPSILON))

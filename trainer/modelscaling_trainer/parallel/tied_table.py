"""A table that the first and the last pipeline stage share: each has a copy and a part of its
gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.distributed as dist

from modelscaling.layout import EMBEDDING
from modelscaling_trainer.process_group import communication

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def sum_over_ends(gradient: Mapping[str, Tensor], ends: dist.ProcessGroup) -> None:
    """Give both copies the sum, so that they stay equal.

    Raises:
        GroupLostError: a peer is gone.
    """
    with communication("summing the gradient of the tied table"):
        dist.all_reduce(gradient[EMBEDDING], group=ends)

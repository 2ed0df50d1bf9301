"""The mean loss over held-out samples: the same samples every time and on every mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from modelscaling_trainer.process_group import all_reduce

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch.distributed as dist
    from numpy.typing import NDArray
    from torch import Tensor

    from modelscaling_trainer.computation import Computation

_IGNORED = -100
"""The target of a token that cross_entropy leaves out."""


def validation_loss(
    computation: Computation,
    read: Callable[[NDArray[np.int64]], tuple[Tensor, Tensor]],
    *,
    samples: int,
    tokens: int,
    data_rank: int,
    data_parallel: int,
    counts_loss: bool,
    members: dist.ProcessGroup,
) -> float:
    """Return the mean loss, nats a token, over so many held-out `samples`, `tokens` in all.

    Each part of the data axes computes every `data_parallel`-th sample. Processes that compute
    together must do so equally often and on equal shapes, so what is missing at the end is filled
    up with samples that do not count.

    Raises:
        GroupLostError: a peer is gone.
    """
    each = -(-samples // data_parallel)
    at_once = computation.samples_at_once
    if each < at_once and not computation.has_fixed_shape:
        at_once = each
    loss_sum = 0.0
    for start in range(0, each, at_once):
        numbers = data_rank + data_parallel * np.arange(start, start + at_once, dtype=np.int64)
        inputs, targets = read(np.minimum(numbers, samples - 1))
        targets[torch.from_numpy(numbers >= samples)] = _IGNORED
        loss_sum += computation.evaluate(inputs, targets)
    total = torch.tensor(loss_sum if counts_loss else 0.0, dtype=torch.float64)
    return all_reduce(total, members).item() / tokens

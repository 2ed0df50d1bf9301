"""The mean loss over held-out samples: the same samples every time and on every mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from modelscaling_trainer.process_group import all_reduce

if TYPE_CHECKING:
    from modelscaling_trainer.decoder import Decoder
    from modelscaling_trainer.samples import Samples


@torch.no_grad()
def validation_loss(
    model: Decoder, samples: Samples, *, rank: int, ranks: int, samples_at_once: int
) -> float:
    """Return the mean loss, nats a token; each rank computes every `ranks`-th sample.

    Raises:
        GroupLostError: a peer is gone.
    """
    device = model.cos_TD.device
    mine = np.arange(rank, samples.validation_count, ranks, dtype=np.int64)
    total = torch.zeros(2, dtype=torch.float64)
    for start in range(0, mine.size, samples_at_once):
        inputs, targets = samples.held_out(mine[start : start + samples_at_once])
        total[0] += model.loss_sum(inputs.to(device), targets.to(device)).item()
        total[1] += targets.numel()
    loss_sum, tokens = all_reduce(total).tolist()
    return float(loss_sum / tokens)

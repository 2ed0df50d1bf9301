"""What every other trainer does with its model in a step: a minimal loop in plain PyTorch.

Nothing of ours is imported but data, as the start of a peer's process is measured too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.case import Case


def train(
    logits: Callable[[torch.Tensor], torch.Tensor],
    model: nn.Module,
    *,
    batch: tuple[torch.Tensor, torch.Tensor],
    has_autocast: bool,
    end_turn: Callable[[], None],
) -> None:
    """Take steps for ever."""
    optimizer = make_optimizer(model)
    while True:
        take_step(logits, model, optimizer, batch=batch, has_autocast=has_autocast)
        end_turn()


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Return fused AdamW."""
    return torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )


def take_step(
    logits: Callable[[torch.Tensor], torch.Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    batch: tuple[torch.Tensor, torch.Tensor],
    has_autocast: bool,
) -> None:
    """Forward, backward, clip to norm 1, update."""
    inputs, targets = batch
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=has_autocast):
        computed = logits(inputs)
    loss = nn.functional.cross_entropy(computed.flatten(0, 1).float(), targets.flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    loss.item()


def make_batch(case: Case, *, rank: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens and targets of a process' part of the batch."""
    generator = torch.Generator().manual_seed(rank)
    shape = (case.batch // size, case.shape.context_length + 1)
    tokens = torch.randint(case.shape.vocabulary_size, shape, generator=generator)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

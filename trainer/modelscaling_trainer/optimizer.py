"""AdamW over a model's parameters, with its moments there from the start.

torch makes the moments in the first step; here they exist before it, so that they can be filled
from a checkpoint or from a peer without a step being taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from modelscaling.configuration import OptimizerConfiguration

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What torch calls AdamW's two moments."""


def make_optimizer(model: nn.Module, settings: OptimizerConfiguration) -> torch.optim.AdamW:
    """Return AdamW whose decay applies to matrices only, with moments of 0."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [p for p in parameters if p.ndim > 1],
                "weight_decay": settings.weight_decay,
            },
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
    )
    for parameter in parameters:
        moments = {moment: torch.zeros_like(parameter) for moment in MOMENTS}
        step = torch.zeros((), dtype=torch.float32, device=parameter.device)
        optimizer.state[parameter] = {"step": step, **moments}
    return optimizer


def set_steps(optimizer: torch.optim.AdamW, steps: int) -> None:
    """Set how many steps the moments have seen; the bias correction depends on it."""
    for state in optimizer.state.values():
        state["step"].fill_(steps)


def set_learning_rate(optimizer: torch.optim.AdamW, rate: float) -> None:
    """Set the rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def moments(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """Return the moments, named MOMENT.PARAMETER."""
    return {
        f"{moment}.{name}": optimizer.state[parameter][moment]
        for moment in MOMENTS
        for name, parameter in model.named_parameters()
    }

"""AdamW over a model's parameters: torch's fused kernel, with state of our own around it.

`torch.optim.AdamW` makes its moments in the first step; here they exist before it, so that they can
be filled from a checkpoint or from a peer. And making one imports the compiler, 5 s of a worker's
start, which the kernel does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch.optim.adamw import adamw

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from modelscaling.configuration import OptimizerConfiguration

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What torch calls AdamW's two moments, in checkpoints too."""


@dataclass(slots=True)
class _Group:
    """Parameters with one weight decay, their moments and the steps that these have seen."""

    parameters: list[nn.Parameter]
    weight_decay: float
    exp_avg: list[Tensor] = field(init=False)
    exp_avg_sq: list[Tensor] = field(init=False)
    steps: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.exp_avg = [torch.zeros_like(p, requires_grad=False) for p in self.parameters]
        self.exp_avg_sq = [torch.zeros_like(p, requires_grad=False) for p in self.parameters]
        self.steps = [torch.zeros((), device=p.device) for p in self.parameters]


class AdamW:
    """AdamW (Loshchilov & Hutter 2019) whose decay applies to matrices only."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], settings: OptimizerConfiguration
    ) -> None:
        """Begin with moments of 0."""
        every = list(parameters)
        self._groups = (
            _Group([p for p in every if p.ndim > 1], settings.weight_decay),
            _Group([p for p in every if p.ndim == 1], 0.0),
        )
        self._settings = settings
        self.learning_rate = settings.learning_rate
        """The rate of the next step."""

    def step(self) -> None:
        """Move the parameters by their gradients."""
        for group in self._groups:
            with torch.no_grad():
                adamw(
                    list[torch.Tensor](group.parameters),
                    [_gradient(p) for p in group.parameters],
                    group.exp_avg,
                    group.exp_avg_sq,
                    [],
                    group.steps,
                    fused=True,
                    amsgrad=False,
                    beta1=self._settings.beta1,
                    beta2=self._settings.beta2,
                    lr=self.learning_rate,
                    weight_decay=group.weight_decay,
                    eps=self._settings.epsilon,
                    maximize=False,
                )

    def set_steps(self, steps: int) -> None:
        """Set how many steps the moments have seen; the bias correction depends on it."""
        for group in self._groups:
            for step in group.steps:
                step.fill_(steps)

    def moments(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the moments, named MOMENT.PARAMETER as `model` names its parameters."""
        found = {
            parameter: dict(zip(MOMENTS, pair, strict=True))
            for group in self._groups
            for parameter, *pair in zip(
                group.parameters, group.exp_avg, group.exp_avg_sq, strict=True
            )
        }
        return {
            f"{moment}.{name}": found[parameter][moment]
            for moment in MOMENTS
            for name, parameter in model.named_parameters()
        }


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        raise RuntimeError("a parameter has no gradient; every step sets all of them")
    return parameter.grad

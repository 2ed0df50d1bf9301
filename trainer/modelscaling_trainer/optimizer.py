"""AdamW over a process' weights: torch's fused kernel, with state of our own around it.

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
    from collections.abc import Mapping

    from torch import Tensor

    from modelscaling.configuration import OptimizerConfiguration

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What torch calls AdamW's two moments, in checkpoints too."""


@dataclass(slots=True)
class _Group:
    """Weights with one weight decay, their moments and the steps that these have seen."""

    weights: dict[str, Tensor]
    weight_decay: float
    exp_avg: list[Tensor] = field(init=False)
    exp_avg_sq: list[Tensor] = field(init=False)
    steps: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        every = self.weights.values()
        self.exp_avg = [torch.zeros_like(weight) for weight in every]
        self.exp_avg_sq = [torch.zeros_like(weight) for weight in every]
        self.steps = [torch.zeros((), device=weight.device) for weight in every]


class AdamW:
    """AdamW (Loshchilov & Hutter 2019) whose decay applies to matrices only."""

    def __init__(self, weights: Mapping[str, Tensor], settings: OptimizerConfiguration) -> None:
        """Begin with moments of 0; the weights are changed in place."""
        self._groups = (
            _Group({n: w for n, w in weights.items() if w.ndim > 1}, settings.weight_decay),
            _Group({n: w for n, w in weights.items() if w.ndim == 1}, 0.0),
        )
        self._settings = settings
        self.learning_rate = settings.learning_rate
        """The rate of the next step."""

    def step(self, gradient: Mapping[str, Tensor]) -> None:
        """Move the weights by their gradient."""
        for group in self._groups:
            if not group.weights:
                continue  # a pipeline stage may have no layers, and so no norms
            with torch.no_grad():
                adamw(
                    list(group.weights.values()),
                    [gradient[name] for name in group.weights],
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

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Return each of MOMENTS by the names of the weights."""
        return {
            moment: {
                name: tensor
                for group in self._groups
                for name, tensor in zip(group.weights, getattr(group, moment), strict=True)
            }
            for moment in MOMENTS
        }

"""AdamW over a process' weights: torch's fused kernel, with state of our own around it.

`torch.optim.AdamW` makes its moments in the first step; here they exist before it, so that they can
be filled from a checkpoint or from a peer. And making one imports the compiler, 5 s of a worker's
start, which the kernel does not.

Weights may differ in what their learning rate is multiplied by (modelscaling.learning_rates), and
those of a model that has grown in age and in further factors (modelscaling.growth); else they are
two groups, matrices and the rest.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch.optim.adamw import adamw

from modelscaling.freezing import is_frozen
from modelscaling_trainer.growth import mixed_ages

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from modelscaling.configuration import OptimizerConfiguration
    from modelscaling.growth.heritage import Heritage

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What torch calls AdamW's two moments, in checkpoints too."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """What the weights of a group have in common."""

    is_matrix: bool
    learning_rate: float = 1.0
    """What the run's learning rate is multiplied by, and so on."""
    weight_decay: float = 1.0
    epsilon: float = 1.0
    has_mixed_ages: bool = False
    is_frozen: bool = False


@dataclass(slots=True)
class _Group:
    """Weights of one kind, their moments and the steps that these have seen."""

    kind: _Kind
    weights: dict[str, Tensor]
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

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        settings: OptimizerConfiguration,
        heritage: Mapping[str, Heritage] | None = None,
        *,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        """Begin with moments of 0; the weights are changed in place.

        `heritage` has all weights of a model that has grown, each cut to what this process holds.
        `factors` is what the learning rate of each weight is multiplied by.
        """
        self._heritage = heritage or {}
        kinds = {
            name: _kind(
                weight,
                self._heritage.get(name),
                factor=factors[name] if factors else 1.0,
                is_frozen=is_frozen(name, settings.freeze),
            )
            for name, weight in weights.items()
        }
        self._groups = _grouped(weights, kinds)
        self._settings = settings
        self._steps = 0
        self.learning_rate = settings.learning_rate
        """The rate of the next step."""

    def step(self, gradient: Mapping[str, Tensor]) -> None:
        """Move the weights by their gradient; frozen ones need none."""
        self._steps += 1
        for group in self._groups:
            if group.kind.is_frozen:
                continue
            if group.kind.has_mixed_ages and self._ages_matter(group):
                self._step_by_age(group, gradient)
            else:
                self._step_at_once(group, gradient)

    def _step_at_once(self, group: _Group, gradient: Mapping[str, Tensor]) -> None:
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
                lr=self.learning_rate * group.kind.learning_rate,
                weight_decay=self._weight_decay(group),
                eps=self._settings.epsilon * group.kind.epsilon,
                maximize=False,
            )

    def _step_by_age(self, group: _Group, gradient: Mapping[str, Tensor]) -> None:
        for name, exp_avg, exp_avg_sq, step in zip(
            group.weights, group.exp_avg, group.exp_avg_sq, group.steps, strict=True
        ):
            mixed_ages.step(
                group.weights[name],
                gradient[name],
                exp_avg,
                exp_avg_sq,
                heritage=self._heritage[name],
                steps=self._steps,
                learning_rate=self.learning_rate * group.kind.learning_rate,
                weight_decay=self._weight_decay(group),
                epsilon=self._settings.epsilon * group.kind.epsilon,
                settings=self._settings,
            )
            step += 1  # noqa: PLW2901 - in place

    def _weight_decay(self, group: _Group) -> float:
        return (
            self._settings.weight_decay * group.kind.weight_decay if group.kind.is_matrix else 0.0
        )

    def _ages_matter(self, group: _Group) -> bool:
        return any(
            mixed_ages.ages_matter(self._heritage[name], self._steps, self._settings, weight.dtype)
            for name, weight in group.weights.items()
        )

    def set_steps(self, steps: int) -> None:
        """Set how many steps the run has done; the bias correction depends on how many of them the
        moments have seen.
        """
        self._steps = steps
        for group in self._groups:
            for name, step in zip(group.weights, group.steps, strict=True):
                heritage = self._heritage.get(name)
                step.fill_(steps - heritage.oldest if heritage else steps)

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


def _grouped(weights: Mapping[str, Tensor], kinds: Mapping[str, _Kind]) -> list[_Group]:
    """Return the weights by their kind, matrices first."""
    together: dict[_Kind, dict[str, Tensor]] = defaultdict(dict)
    for name, weight in weights.items():
        together[kinds[name]][name] = weight
    return [
        _Group(kind, those)
        for kind, those in sorted(together.items(), key=lambda item: not item[0].is_matrix)
    ]


def _kind(weight: Tensor, heritage: Heritage | None, *, factor: float, is_frozen: bool) -> _Kind:
    kind = _Kind(is_matrix=weight.ndim > 1, learning_rate=factor, is_frozen=is_frozen)
    if heritage is None:
        return kind
    return replace(
        kind,
        learning_rate=factor * heritage.learning_rate,
        weight_decay=heritage.weight_decay,
        epsilon=heritage.epsilon,
        has_mixed_ages=heritage.has_mixed_ages,
    )

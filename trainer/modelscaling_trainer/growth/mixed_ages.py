"""AdamW for a tensor whose entries are of different ages, as it has where it grew.

Adam divides its moments by 1 − βᵗ, as they began at 0. An entry that is new in an old tensor has
its own t: with the tensor's, its first step would be (1 − β₁) / √(1 − β₂) learning rates long, 3.16
of them for β = (0.9, 0.999), and not one. The fused kernel knows one t a tensor, so such a tensor
takes plain operations here, which are slower, for as long as ages make a difference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from modelscaling.configuration import OptimizerConfiguration
    from modelscaling.growth.heritage import Heritage


def ages_matter(
    heritage: Heritage, steps: int, settings: OptimizerConfiguration, dtype: torch.dtype
) -> bool:
    """Whether after so many steps of the run any entry's 1 − βᵗ is not rounded to 1.

    In float32 that is 17,000 steps after growth for β₂ = 0.999, and 340 for 0.95.
    """
    slowest = max(settings.beta1, settings.beta2)
    # Numbers just below 1 are eps / 2 apart: what is below half of that is lost.
    return bool(slowest ** (steps - heritage.youngest) >= torch.finfo(dtype).eps / 4)


@torch.no_grad()
def step(
    weight: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    heritage: Heritage,
    steps: int,
    learning_rate: float,
    weight_decay: float,
    epsilon: float,
    settings: OptimizerConfiguration,
) -> None:
    """Do the step number `steps` of the run, counted from 1, in place; learning rate, decay and
    epsilon are those of this weight.
    """
    beta1, beta2 = settings.beta1, settings.beta2
    weight.mul_(1 - learning_rate * weight_decay)
    exp_avg.lerp_(gradient, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    divisor = exp_avg_sq / _correction(beta2, heritage, steps, weight)
    divisor.sqrt_().add_(epsilon)
    change = exp_avg / _correction(beta1, heritage, steps, weight)
    weight.sub_(change.div_(divisor).mul_(learning_rate))


def _correction(beta: float, heritage: Heritage, steps: int, like: Tensor) -> Tensor:
    """Return 1 − βᵗ of each entry, as a tensor that broadcasts to the weight's shape."""
    found: Tensor | None = None
    for axis, ages in enumerate(heritage.axes):
        of_ages = torch.tensor(
            [1 - beta ** (steps - age.born) for age in ages], dtype=torch.float64
        ).to(like)
        lengths = torch.tensor([age.length for age in ages], device=like.device)
        along = of_ages.repeat_interleave(lengths, output_size=like.shape[axis])
        along = along.view(-1, *(1,) * (like.ndim - axis - 1))
        # The youngest of row and column has the smallest.
        found = along if found is None else torch.minimum(found, along)
    assert found is not None
    return found

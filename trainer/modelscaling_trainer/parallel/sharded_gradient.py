"""The gradient of sharded weights: torch's fully_shard sums and cuts it in the backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelscaling_trainer.gradient import gradient_of
from modelscaling_trainer.parallel.sharding import sum_over_copies_in_next_backward
from modelscaling_trainer.shard import local

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch.distributed as dist
    from torch import Tensor
    from torch.nn import Parameter

    from modelscaling_trainer.model.decoder import Decoder


class ShardedGradient:
    """This process' part of the gradient of each weight."""

    own_square: float | None = None
    """Not known: no process ever has its own gradient whole."""

    def __init__(self, stages: list[Decoder], parameters: Mapping[str, Parameter]) -> None:
        self._stages = stages
        self._parameters = parameters

    def join(self, copies: dist.ProcessGroup) -> None:
        """Do nothing: the modules are tied to their group."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the gradient of each weight's shard; writing into it changes it."""
        return {name: local(gradient_of(parameter)) for name, parameter in self._parameters.items()}

    def clear(self) -> None:
        """Forget the gradient."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def before_backward(self, *, is_last: bool) -> None:
        """Sum over the copies of the weights in the last backward pass of a step only."""
        for stage in self._stages:
            sum_over_copies_in_next_backward(stage, is_due=is_last)

    def after_schedule(self) -> None:
        """Do nothing: a pipeline's schedule sums after its last backward pass."""

    def finish(self) -> None:
        """Do nothing: the backward pass ends with the sums."""

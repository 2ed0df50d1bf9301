"""Forward and backward passes over a process' part of a batch, on any mesh."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from modelscaling_trainer.gradient_store import GradientStore
    from modelscaling_trainer.model_part import ModelPart
    from modelscaling_trainer.parallel.meshes import AxisGroups

    Read = Callable[[NDArray[np.int64]], tuple[Tensor, Tensor]]
    """Returns the tokens of samples, and the token after each."""


class Computation(Protocol):
    """How a process computes on its mesh."""

    samples_at_once: int
    """The most that evaluate() takes."""
    has_fixed_shape: bool
    """Whether evaluate() takes no less either."""

    def forward_backward(self, numbers: NDArray[np.int64], read: Read) -> float:
        """Add the gradient of samples; return the sum of the loss that is seen here, nats.

        Raises:
            RuntimeError: a peer is gone.
        """
        ...

    def evaluate(self, inputs: Tensor, targets: Tensor) -> float:
        """Return the sum of the loss that is seen here, nats."""
        ...


def computation(
    part: ModelPart,
    gradient: GradientStore,
    groups: AxisGroups,
    *,
    batch_size: int,
    samples_at_once: int,
    loss_scale: float,
) -> Computation:
    """Return how `part` computes its `batch_size` samples of a step."""
    if part.mesh.pipeline == 1:
        return _SinglePass(part, gradient, samples_at_once=samples_at_once, loss_scale=loss_scale)
    return _PipelinePass(
        part,
        gradient,
        groups,
        batch_size=batch_size,
        samples_at_once=samples_at_once,
        loss_scale=loss_scale,
    )


class _SinglePass:
    """Every micro batch goes through the whole model here."""

    def __init__(
        self,
        part: ModelPart,
        gradient: GradientStore,
        *,
        samples_at_once: int,
        loss_scale: float,
    ) -> None:
        (self._stage,) = part.stages
        self._gradient = gradient
        self._loss_scale = loss_scale
        self._is_vocabulary_cut = part.mesh.tensor > 1
        self.samples_at_once = samples_at_once
        self.has_fixed_shape = False

    def forward_backward(self, numbers: NDArray[np.int64], read: Read) -> float:
        losses: list[Tensor] = []
        for start in range(0, numbers.size, self.samples_at_once):
            end = start + self.samples_at_once
            inputs, targets = read(numbers[start:end])
            self._gradient.before_backward(is_last=end >= numbers.size)
            with _loss_context(is_vocabulary_cut=self._is_vocabulary_cut):
                loss_sum = self._stage.loss_sum(inputs, targets)
                (loss_sum * self._loss_scale).backward()  # type: ignore[no-untyped-call]
            losses.append(loss_sum.detach())
        return sum(loss.item() for loss in losses)

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, targets: Tensor) -> float:
        with _loss_context(is_vocabulary_cut=self._is_vocabulary_cut):
            return self._stage.loss_sum(inputs, targets).item()


class _PipelinePass:
    """All micro batches of a step go through the pipeline's schedule."""

    def __init__(
        self,
        part: ModelPart,
        gradient: GradientStore,
        groups: AxisGroups,
        *,
        batch_size: int,
        samples_at_once: int,
        loss_scale: float,
    ) -> None:
        # 4 s of import that only pipelines pay.
        from modelscaling_trainer.parallel.pipeline import Pipeline  # noqa: PLC0415

        self._gradient = gradient
        self._is_vocabulary_cut = part.mesh.tensor > 1
        self._pipeline = Pipeline(
            part.stages,
            groups.pipeline,
            mesh=part.mesh,
            rank=part.rank,
            micro_batches=batch_size // samples_at_once,
            loss_scale=loss_scale,
        )
        self.samples_at_once = batch_size
        self.has_fixed_shape = True

    def forward_backward(self, numbers: NDArray[np.int64], read: Read) -> float:
        inputs, targets = read(numbers)
        with _loss_context(is_vocabulary_cut=self._is_vocabulary_cut):
            loss_sum = self._pipeline.forward_backward(inputs, targets)
        self._gradient.after_schedule()
        return loss_sum

    def evaluate(self, inputs: Tensor, targets: Tensor) -> float:
        with _loss_context(is_vocabulary_cut=self._is_vocabulary_cut):
            return self._pipeline.evaluate(inputs, targets)


def _loss_context(*, is_vocabulary_cut: bool) -> AbstractContextManager[object]:
    """Return what the loss and its gradient are computed in."""
    if not is_vocabulary_cut:
        return nullcontext()
    from torch.distributed.tensor.parallel import loss_parallel  # noqa: PLC0415

    context: AbstractContextManager[object] = loss_parallel()
    return context

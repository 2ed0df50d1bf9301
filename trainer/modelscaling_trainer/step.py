"""One optimizer step: this rank's part of the global batch, the sum over ranks, the update."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np

from modelscaling_trainer.agreement import StepReport, agree
from modelscaling_trainer.errors import DivergedError
from modelscaling_trainer.noise_scale import NoiseScale
from modelscaling_trainer.sample_digest import batch_sum, chain
from modelscaling_trainer.sample_order import global_batch
from modelscaling_trainer.schedule import learning_rate
from modelscaling_trainer.state import Counters

if TYPE_CHECKING:
    from collections.abc import Collection

    import torch
    from numpy.typing import NDArray

    from modelscaling.configuration import RunConfiguration
    from modelscaling_trainer.gradient import Gradient
    from modelscaling_trainer.request import Request
    from modelscaling_trainer.samples import Samples
    from modelscaling_trainer.state import TrainingState


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPart:
    """Which part of each global batch a rank computes, and how much of it at once."""

    first: int
    size: int
    samples_at_once: int


@dataclass(slots=True, kw_only=True)
class StepTimes:
    """Where the time of a step went, seconds."""

    total: float = 0.0
    data_wait: float = 0.0
    peer_wait: float = 0.0


class Stepper:
    """Takes steps; the same code for one rank and for many."""

    def __init__(
        self,
        configuration: RunConfiguration,
        *,
        state: TrainingState,
        gradient: Gradient,
        samples: Samples,
    ) -> None:
        self._configuration = configuration
        self._state = state
        self._gradient = gradient
        self._samples = samples
        self.times = StepTimes()
        """Of the last step."""
        self.noise_scale = NoiseScale()
        """Over the steps of the present group."""

    def take(
        self, part: BatchPart, *, requests: Collection[Request], checkpoint_step: int
    ) -> StepReport:
        """Take one step, and return what all ranks agreed on in it.

        Raises:
            DivergedError: the loss or the gradient is not finite; the state is that before.
            GroupLostError: a peer is gone; the state is that before.
        """
        started = time.perf_counter()
        before = self._state.counters
        previous, self.times = self.times, StepTimes()
        positions, numbers = self._part_of_batch(part, before.step)
        loss_sum = self._accumulate(numbers, part.samples_at_once)
        waiting_since = time.perf_counter()
        self._gradient.finish_exchange()
        report = StepReport(
            loss_sum=loss_sum,
            tokens=numbers.size * self._configuration.model.context_length,
            batch_sum=batch_sum(before.step, positions, numbers),
            requests=requests,
            own_square=self._gradient.own_square,
            step_seconds=previous.total,
            wait_seconds=previous.peer_wait,
            checkpoint_step=checkpoint_step,
        )
        agreed = agree(report)
        self.times.peer_wait = time.perf_counter() - waiting_since
        norm = self._update(before, agreed)
        self._observe_noise(part, agreed, norm)
        self.times.total = time.perf_counter() - started
        self._state.add_useful_seconds(self.times.total)
        return agreed

    def _part_of_batch(
        self, part: BatchPart, step: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return this rank's positions in the global batch, and the samples there."""
        training = self._configuration.training
        batch = global_batch(
            seed=training.seed,
            step=step,
            batch_size=training.global_batch_size,
            samples=self._samples.training_count,
        )
        positions = np.arange(part.first, part.first + part.size, dtype=np.int64)
        return positions, batch[positions]

    def _accumulate(self, numbers: NDArray[np.int64], samples_at_once: int) -> float:
        """Add up the gradient of this rank's samples; return the sum of their loss."""
        model = self._state.model
        scale = 1.0 / self._configuration.tokens_per_step
        losses: list[torch.Tensor] = []
        self._gradient.clear()
        for start in range(0, numbers.size, samples_at_once):
            inputs, targets = self._read(numbers[start : start + samples_at_once])
            loss_sum = model.loss_sum(inputs, targets)
            if start + samples_at_once >= numbers.size:
                self._gradient.exchange_in_next_backward()
            (loss_sum * scale).backward()  # type: ignore[no-untyped-call]
            losses.append(loss_sum.detach())
        return sum(loss.item() for loss in losses)

    def _read(self, numbers: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        started = time.perf_counter()
        inputs, targets = self._samples.training(numbers)
        device = self._state.model.cos_TD.device
        moved = inputs.to(device), targets.to(device)
        self.times.data_wait += time.perf_counter() - started
        return moved

    def _observe_noise(self, part: BatchPart, agreed: StepReport, norm: float) -> None:
        batch = self._configuration.training.global_batch_size
        ranks = batch // part.size
        # A rank's gradient is scaled by the global batch; its part's own mean is `ranks` times it.
        self.noise_scale.observe(
            small_square=ranks * agreed.own_square,
            small_batch=part.size,
            large_square=norm**2,
            large_batch=batch,
        )

    def _update(self, before: Counters, agreed: StepReport) -> float:
        """Take the step; return the norm that the gradient had."""
        settings = self._configuration.optimizer
        if not agreed.is_finite:
            raise DivergedError(
                f"the loss of step {before.step + 1} is {agreed.loss_sum}; lower "
                f"training.learningRate={settings.learning_rate:g}, or lengthen the warm-up"
            )
        norm = self._gradient.clip(settings.gradient_clip_norm)
        if not isfinite(norm):
            raise DivergedError(
                f"the gradient's norm of step {before.step + 1} is {norm}; lower "
                f"training.learningRate={settings.learning_rate:g}, or lengthen the warm-up"
            )
        rate = learning_rate(
            settings, step=before.step, total_steps=self._configuration.training.total_steps
        )
        self._state.optimizer.learning_rate = rate
        after = Counters(
            step=before.step + 1,
            tokens=before.tokens + agreed.tokens,
            sample_digest=chain(before.sample_digest, agreed.batch_sum),
            useful_seconds=before.useful_seconds,
            started_at=before.started_at,
        )
        with self._state.changing(after):
            self._state.optimizer.step()
        return norm

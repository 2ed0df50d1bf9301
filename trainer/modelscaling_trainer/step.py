"""One optimizer step: this rank's part of the global batch, the sum over ranks, the update."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np

from modelscaling.freezing import is_frozen
from modelscaling_trainer.agreement import StepReport, agree
from modelscaling_trainer.data.sample_digest import batch_sum, chain
from modelscaling_trainer.data.sample_order import global_batch
from modelscaling_trainer.errors import DivergedError, GroupLostError
from modelscaling_trainer.gradient_norm import clip, share_of_square
from modelscaling_trainer.noise_scale import NoiseScale
from modelscaling_trainer.parallel.tied_table import sum_over_ends
from modelscaling_trainer.process_group import computing_together
from modelscaling_trainer.schedule import learning_rate
from modelscaling_trainer.waiting import counted_waits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    import torch.distributed as dist
    from numpy.typing import NDArray

    from modelscaling.configuration import RunConfiguration
    from modelscaling_trainer.agreement import Notice
    from modelscaling_trainer.computation import Computation
    from modelscaling_trainer.data.reader import Reader
    from modelscaling_trainer.gradient_store import GradientStore
    from modelscaling_trainer.group import Group
    from modelscaling_trainer.state import Counters, TrainingState
    from modelscaling_trainer.waiting import WaitClock


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Where the time of a step went, seconds."""

    total: float = 0.0
    data_wait: float = 0.0
    peer_wait: float = 0.0
    skew: float = 0.0
    """How much longer than the mean of all ranks this one worked until they agreed."""


class Stepper:
    """Takes steps in one group; the same code on every mesh."""

    def __init__(
        self,
        configuration: RunConfiguration,
        *,
        group: Group,
        members: dist.ProcessGroup,
        state: TrainingState,
        gradient: GradientStore,
        computation: Computation,
        reader: Reader,
        tied_ends: dist.ProcessGroup | None,
        before_update: Callable[[], None],
    ) -> None:
        """`tied_ends` are the processes whose tied tables are copies, where a pipeline has two.
        `before_update` is called right before weights and moments change.
        """
        self._configuration = configuration
        self._group = group
        self._members = members
        self._state = state
        self._gradient = gradient
        self._computation = computation
        self._reader = reader
        self._tied_ends = tied_ends
        self._before_update = before_update
        freeze = configuration.optimizer.freeze
        self._frozen = {name for name in state.part.weights if is_frozen(name, freeze)}
        self.times = StepTimes()
        """Of the last step."""
        self.noise_scale = NoiseScale()

    def take(self, notice: Notice) -> StepReport:
        """Take one step, and return what all ranks agreed on in it.

        Raises:
            DivergedError: the loss or the gradient is not finite; the state is that before.
            GroupLostError: a peer is gone; the state is that before.
            CheckpointError: one that was being written could not be.
        """
        before = self._state.counters
        previous, self.times = self.times, StepTimes()
        try:
            with counted_waits() as waits:
                agreed = self._take(before, previous, waits, notice)
        except GroupLostError as error:
            raise GroupLostError(f"step {before.step + 1}: {error.message}") from error
        self._state.add_useful_seconds(self.times.total)
        return agreed

    def _take(
        self, before: Counters, previous: StepTimes, waits: WaitClock, notice: Notice
    ) -> StepReport:
        started = time.perf_counter()
        positions, numbers = self._part_of_batch(before.step)
        loss_sum, gradient = self._compute(numbers)
        counts_samples = self._group.counts_samples
        report = StepReport(
            loss_sum=loss_sum if self._group.counts_loss else 0.0,
            tokens=numbers.size * self._configuration.model.context_length * counts_samples,
            batch_sum=batch_sum(before.step, positions, numbers) * counts_samples,
            requests=notice.requests,
            gradient_square=share_of_square(gradient, self._state.part.weights),
            own_square=self._gradient.own_square or 0.0,
            step_seconds=previous.total,
            wait_seconds=previous.peer_wait,
            busy_seconds=time.perf_counter() - started - waits.seconds,
            snapshot_seconds=notice.snapshot_seconds,
            checkpoint_step=notice.checkpoint_step,
        )
        agreed = agree(report, self._members)
        self._update(before, agreed, gradient)
        self._observe_noise(agreed)
        self.times = StepTimes(
            total=time.perf_counter() - started,
            data_wait=self._reader.take_seconds(),
            peer_wait=waits.seconds,
            skew=report.busy_seconds - agreed.busy_seconds / self._group.mesh.size,
        )
        return agreed

    def _compute(self, numbers: NDArray[np.int64]) -> tuple[float, Mapping[str, torch.Tensor]]:
        """Return the sum of the loss that is seen here, and this process' part of the gradient of
        what is trained.
        """
        self._gradient.clear()
        with computing_together("computing the gradient"):
            loss_sum = self._computation.forward_backward(numbers, self._reader.training)
        self._gradient.finish()
        gradient = self._gradient.tensors()
        if self._tied_ends is not None:
            sum_over_ends(gradient, self._tied_ends)
        trained = {name: part for name, part in gradient.items() if name not in self._frozen}
        return loss_sum, trained

    def _part_of_batch(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return this rank's positions in the global batch, and the samples there."""
        training = self._configuration.training
        batch = global_batch(
            seed=training.seed,
            step=step,
            batch_size=training.global_batch_size,
            samples=self._reader.training_count,
        )
        size = training.global_batch_size // self._group.mesh.data_parallel
        first = self._group.data_rank * size
        positions = np.arange(first, first + size, dtype=np.int64)
        return positions, batch[positions]

    def _observe_noise(self, agreed: StepReport) -> None:
        mesh = self._group.mesh
        if mesh.dataReplicate < mesh.size:
            return  # no process ever has its own gradient whole
        if self._frozen:
            return  # of its own, a process knows only the norm with the frozen weights' part
        batch = self._configuration.training.global_batch_size
        # A rank's gradient is scaled by the global batch; its part's own mean is `size` times it.
        self.noise_scale.observe(
            small_square=mesh.size * agreed.own_square,
            small_batch=batch // mesh.size,
            large_square=agreed.gradient_square,
            large_batch=batch,
        )

    def _update(
        self, before: Counters, agreed: StepReport, gradient: Mapping[str, torch.Tensor]
    ) -> None:
        settings = self._configuration.optimizer
        if not agreed.is_finite:
            raise DivergedError(
                f"the loss of step {before.step + 1} is {agreed.loss_sum}; lower "
                f"training.learningRate={settings.learning_rate:g}, or lengthen the warm-up"
            )
        if not isfinite(agreed.gradient_square):
            raise DivergedError(
                f"the gradient's squared norm of step {before.step + 1} is "
                f"{agreed.gradient_square}; lower "
                f"training.learningRate={settings.learning_rate:g}, or lengthen the warm-up"
            )
        clip(gradient, norm=agreed.gradient_norm, largest_norm=settings.gradient_clip_norm)
        rate = learning_rate(
            settings,
            step=before.step,
            total_steps=self._configuration.training.total_steps,
            grown_at=self._state.model.lineage.grown_at,
        )
        self._state.optimizer.learning_rate = rate
        after = replace(
            before,
            step=before.step + 1,
            tokens=before.tokens + agreed.tokens,
            sample_digest=chain(before.sample_digest, agreed.batch_sum),
            loss_sum=before.loss_sum + agreed.loss,
            loss_steps=before.loss_steps + 1,
        )
        self._before_update()
        with self._state.changing(after):
            self._state.optimizer.step(gradient)

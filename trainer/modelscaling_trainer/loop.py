"""Training in one group, from the step that its state is at to the end or to a request."""

from __future__ import annotations

import gc
import logging
import resource
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from modelscaling.protocol import Progress
from modelscaling_trainer.agreement import Notice
from modelscaling_trainer.checkpoint.writer import LAST_PATIENCE_S, PATIENCE_S
from modelscaling_trainer.errors import CheckpointError, DivergedError
from modelscaling_trainer.figures import ProcessFigures
from modelscaling_trainer.growth.verdict import reject
from modelscaling_trainer.parallel import imports
from modelscaling_trainer.process_group import all_gather, computing_together
from modelscaling_trainer.request import ENDING, Outcome, Request
from modelscaling_trainer.state import NOTHING
from modelscaling_trainer.throughput import Throughput, goodput_ratio
from modelscaling_trainer.validation import validation_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    import torch.distributed as dist

    from modelscaling.configuration import RunConfiguration
    from modelscaling.protocol import GrowthRejection, Resumption
    from modelscaling_trainer.agreement import StepReport
    from modelscaling_trainer.checkpoint.writer import CheckpointWriter
    from modelscaling_trainer.compilation import Compilation
    from modelscaling_trainer.computation import Computation
    from modelscaling_trainer.data.reader import Reader
    from modelscaling_trainer.data.samples import Samples
    from modelscaling_trainer.group import Group
    from modelscaling_trainer.growth.verdict import Outgrown
    from modelscaling_trainer.guard import Guard
    from modelscaling_trainer.request import Requests
    from modelscaling_trainer.resumption import History, Origin
    from modelscaling_trainer.state import TrainingState
    from modelscaling_trainer.step import Stepper, StepTimes


_log = logging.getLogger(__name__)

_IMPORT_AFTER_S = 30.0
"""Into training: late enough that no first step waits for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listeners:
    """Who is told what."""

    on_progress: Callable[[Progress], None]
    on_phase: Callable[[str], None]
    on_figures: Callable[[ProcessFigures], None]


@dataclass(slots=True, kw_only=True)
class Loop:
    """One process' training in one group."""

    configuration: RunConfiguration
    group: Group
    members: dist.ProcessGroup
    state: TrainingState
    samples: Samples
    reader: Reader
    device: torch.device
    computation: Computation
    stepper: Stepper
    compilation: Compilation
    writer: CheckpointWriter | None
    guard: Guard
    requests: Requests
    listeners: Listeners
    last_step: int
    history: History
    origin: Origin
    """What the group goes on with."""
    checkpoint_step: int
    """The newest checkpoint that all ranks know of; NOTHING where there is none."""
    throughput: Throughput
    outgrown: Outgrown | None = None
    """What the state has just grown from; None where it has not."""
    growth: tuple[float, float] | None = None
    """The validation losses before and after that, nats a token, where both were measured."""
    resumption: Resumption | None = None

    def judge_growth(self) -> GrowthRejection | None:
        """Measure what growth has done to the validation loss, before the first step, and return
        why it is to be taken back, if it is: the same on all ranks. It is no validation of the
        run's history: there is no training loss beside it yet.

        Raises:
            GroupLostError: a peer is gone.
        """
        if self.outgrown is None or not self.samples.validation_count:
            return None
        before, after = self.outgrown.validation_loss, self._validation_loss()
        if before is None:
            _log.info("the validation loss is %.6f after growth", after)
            return None
        self.growth = before, after
        _log.info("the validation loss is %.6f before growth, %.6f after", before, after)
        rejection = reject(self.outgrown, self.configuration, loss_after=after)
        if rejection is not None and not self.outgrown.is_kept:
            _log.warning(
                "%s; it stays, as nobody has the state before: pods that left held a part of it, "
                "and there is no checkpoint",
                rejection.message,
            )
            return None
        return rejection

    def run(self) -> Outcome:
        """Train; every rank returns the same, after the same step.

        Raises:
            DivergedError: the loss, the gradient or the weights are not finite.
            CheckpointError: a checkpoint could not be written.
            GroupLostError: a peer is gone.
        """
        self.listeners.on_phase("Training")
        if self._is_complete():
            self._save_and_wait()
            self._tell(None)
            return Outcome.COMPLETE
        self._save_unsaved()
        began = time.monotonic()
        is_first = True
        while True:
            is_compiling = self._compile_if_due()
            agreed = self._take_step()
            if self._is_validation_due(agreed):
                self._validate()
            outcome = self._outcome(agreed)
            if outcome is not None and must_save(outcome, agreed.requests):
                self._save_and_wait()
            elif self._is_checkpoint_due(agreed):
                self._save()
            self._tell(agreed)
            if is_compiling:
                self.listeners.on_phase("Training")
            if is_first:
                gc.collect()  # frees the state of the group before, see garbage.py
                is_first = False
            if time.monotonic() - began > _IMPORT_AFTER_S:
                imports.import_rest()
            if outcome is not None:
                return outcome
            self.guard.after_step(self.state, agreed)

    def _compile_if_due(self) -> bool:
        """Return whether the next step compiles the layers, and so takes long."""
        remaining = self.last_step - self.state.step
        is_due = self.compilation.apply_if_due(self.state.part, remaining_steps=remaining)
        if is_due:
            self.listeners.on_phase("Compiling")
        return is_due

    def _take_step(self) -> StepReport:
        began = time.time()
        written = self.writer.written_step if self.writer and self.group.rank == 0 else None
        agreed = self.stepper.take(
            Notice(
                requests=self.requests.take(),
                snapshot_seconds=self.guard.snapshot_seconds,
                checkpoint_step=written or 0,
            )
        )
        self.checkpoint_step = max(self.checkpoint_step, agreed.checkpoint_step)
        if agreed.step_seconds:
            self.compilation.observe(agreed.step_seconds / self.group.mesh.size)
        self.throughput.add(self.stepper.times.total)
        self._remember(agreed, began=began)
        return agreed

    def _remember(self, agreed: StepReport, *, began: float) -> None:
        if self.resumption is None:
            self.resumption = self.origin.resumption(
                self.group, resumed_time=began, loss_after=agreed.loss
            )
            if self.growth is not None:
                before, after = self.growth
                self.resumption = self.resumption.model_copy(
                    update={"loss_before": before, "loss_after": after}
                )
        self.history.add_step(self.group, step=self.state.step, loss=agreed.loss)

    def _is_validation_due(self, agreed: StepReport) -> bool:
        if not self.samples.validation_count:
            return False
        if Request.GROW in agreed.requests:
            return True
        every = self.configuration.training.validate_every_steps
        if not every:
            return False
        return self.state.step % every == 0 or self.state.step == self.last_step

    def _validate(self) -> None:
        loss = self._validation_loss()
        self.state.add_validation(loss, self.configuration.training.early_stopping)

    def _validation_loss(self) -> float:
        self.listeners.on_phase("Validating")
        with computing_together(f"measuring the validation loss of step {self.state.step}"):
            loss = validation_loss(
                self.computation,
                self.reader.held_out,
                samples=self.samples.validation_count,
                tokens=self.samples.validation_count * self.configuration.model.context_length,
                data_rank=self.group.data_rank,
                data_parallel=self.group.mesh.data_parallel,
                counts_loss=self.group.counts_loss,
                members=self.members,
            )
        self.listeners.on_phase("Training")
        return loss

    def _is_complete(self) -> bool:
        return self.state.step >= self.last_step or self._is_stopped_early()

    def _is_stopped_early(self) -> bool:
        """Return the same on all ranks, as they share the loss, and after a restart, as the history
        is a part of the state.
        """
        early_stopping = self.configuration.training.early_stopping
        patience = early_stopping.patience if early_stopping else None
        return self.state.counters.validations.has_lost_patience(patience)

    def _is_best_to_be_saved(self) -> bool:
        """Whether the present state is the best one so far, and is to outlive the run."""
        if self.writer is None or self.configuration.training.early_stopping is None:
            return False
        return self.state.counters.validations.is_best_at(self.state.step)

    def _save_unsaved(self) -> None:
        """Save what the group begins with where the next save in turn would come too late for it:
        the best state, with which the group before may have ended before it was saved, and any
        that has come to a volume on which there is nothing yet.
        """
        if self.writer is None:
            return
        is_bare = is_bare_volume(self.state.step, self.checkpoint_step)
        is_unsaved_best = self._is_best_to_be_saved() and self.checkpoint_step != self.state.step
        if is_bare or is_unsaved_best:
            self._save()

    def _outcome(self, agreed: StepReport) -> Outcome | None:
        if self._is_complete():
            return Outcome.COMPLETE
        if ENDING & set(agreed.requests):
            return Outcome.STOPPED
        return None

    def _is_checkpoint_due(self, agreed: StepReport) -> bool:
        settings = self.configuration.checkpoint
        if self.writer is None or settings is None:
            return False
        is_asked = Request.CHECKPOINT in agreed.requests
        is_in_turn = self.state.step % settings.every_steps == 0
        return is_asked or is_in_turn or self._is_best_to_be_saved()

    def _save(self, *, patience_s: float = PATIENCE_S) -> bool:
        """Begin to save in the background, each rank its part; False if the last one hangs."""
        assert self.writer is not None
        return self.writer.save(
            self.state.shards(),
            self.state.counters,
            learning_rate=self.configuration.optimizer.learning_rate,
            patience_s=patience_s,
        )

    def _save_and_wait(self) -> None:
        """Save, and return on every rank when the checkpoint is there."""
        if self.writer is None:
            return
        if self.checkpoint_step == self.state.step:
            self.writer.finish()
            return
        self.listeners.on_phase("Saving")

        def write() -> None:
            assert self.writer is not None
            if not self._save(patience_s=LAST_PATIENCE_S):
                raise CheckpointError(self.writer.failure or "the checkpoint before hangs")
            self.writer.wait_for_part()

        # The first rank waits for the others' parts, so it first hears that they could be written.
        _together(write, self.members)
        _together(self.writer.wait, self.members)
        self.checkpoint_step = self.state.step

    def _tell(self, agreed: StepReport | None) -> None:
        counters, times = self.state.counters, self.stepper.times
        validations = counters.validations
        self.listeners.on_progress(
            Progress(
                step=counters.step,
                total_steps=self.configuration.training.total_steps,
                tokens=counters.tokens,
                sample_digest=counters.sample_digest,
                loss=agreed.loss if agreed else None,
                validation_loss=validations.recent[-1].loss if validations.recent else None,
                validations=validations,
                epoch_tokens=self.samples.training_count * self.configuration.model.context_length,
                is_stopped_early=self._is_stopped_early(),
                best_checkpoint=self.writer.best if self.writer else None,
                gradient_norm=agreed.gradient_norm if agreed else None,
                step_seconds=times.total,
                tokens_per_second=self.throughput.tokens_per_second,
                mfu_ratio=self.throughput.mfu_ratio,
                goodput_ratio=goodput_ratio(
                    useful_seconds=counters.useful_seconds,
                    started_at=counters.started_at or 0.0,
                    now=time.time(),
                ),
                scaling_efficiency_ratio=agreed.scaling_efficiency if agreed else None,
                gradient_noise_scale=self.stepper.noise_scale.samples,
                checkpoint_step=self.checkpoint_step if self.checkpoint_step > 0 else None,
                checkpoint_failure=self.writer.failure if self.writer else None,
                resumption=self.resumption,
            )
        )
        self.listeners.on_figures(
            ProcessFigures(
                step=counters.step,
                data_wait_seconds=times.data_wait,
                peer_wait_seconds=times.peer_wait,
                step_skew_seconds=times.skew,
                communication_ratio=_communication_ratio(times, self.device),
                peak_memory_bytes=_peak_memory_bytes(self.device),
                checkpoint_seconds=self.writer.written_seconds if self.writer else None,
            )
        )


def _communication_ratio(times: StepTimes, device: torch.device) -> float | None:
    if device.type == "cuda" or not times.total:
        return None
    return times.peer_wait / times.total


def _peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def must_save(outcome: Outcome, requests: Collection[Request]) -> bool:
    """Whether a group ends with a checkpoint.

    It does without one only where all that was asked is to form another group of the same run, to
    which those that leave hand over what they have.
    """
    return outcome is Outcome.COMPLETE or bool({Request.STOP, Request.GROW} & set(requests))


def is_bare_volume(step: int, checkpoint_step: int) -> bool:
    """Whether a state of so many steps has no checkpoint at all behind it, as after a move to
    another volume: if its processes were lost now, so would be the run.
    """
    return step > 0 and checkpoint_step == NOTHING


def _together(save: Callable[[], None], members: dist.ProcessGroup) -> None:
    """Do something that may fail to save, on all ranks; what fails on one fails on all."""
    failure: CheckpointError | DivergedError | None = None
    try:
        save()
    except (CheckpointError, DivergedError) as error:
        failure = error
    told = failure and (type(failure).__name__, failure.message)
    for answer in all_gather({"failure": told}, members):
        if answer["failure"] is not None:
            kind, message = answer["failure"]
            is_diverged = kind == DivergedError.__name__
            raise (DivergedError if is_diverged else CheckpointError)(message) from failure

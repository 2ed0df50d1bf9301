"""A run inside one worker process: what survives a change of group, and training in a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelscaling.layout import process_stages
from modelscaling.micro_batch import micro_batch_size
from modelscaling_trainer import compilation
from modelscaling_trainer.checkpoint.writer import CheckpointWriter
from modelscaling_trainer.compilation import Compilation
from modelscaling_trainer.computation import computation
from modelscaling_trainer.data.corpus import open_corpus
from modelscaling_trainer.data.reader import Reader
from modelscaling_trainer.data.samples import Samples
from modelscaling_trainer.device_peak import peak_flops
from modelscaling_trainer.errors import ConfigurationError
from modelscaling_trainer.figures import ProcessFigures
from modelscaling_trainer.group import Group
from modelscaling_trainer.loop import Listeners, Loop
from modelscaling_trainer.memory import keep_freed_memory
from modelscaling_trainer.model_part import ModelPart
from modelscaling_trainer.optimizer import AdamW
from modelscaling_trainer.parallel.context import positions
from modelscaling_trainer.parallel.meshes import axis_groups
from modelscaling_trainer.precision import compute_dtype
from modelscaling_trainer.process_group import computing_together, process_group
from modelscaling_trainer.request import Outcome, Request, Requests
from modelscaling_trainer.state import TrainingState
from modelscaling_trainer.step import Stepper
from modelscaling_trainer.takeover import Identity, Taken, take_over
from modelscaling_trainer.throughput import Throughput

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

    from modelscaling.api.training import Precision
    from modelscaling.configuration import RunConfiguration
    from modelscaling.protocol import Progress
    from modelscaling_trainer.parallel.meshes import AxisGroups

__all__ = ["Group", "Outcome", "ProcessFigures", "Request", "Requests", "Run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Formed:
    """A group that stands, with the state that it trains on."""

    group: Group
    axes: AxisGroups
    state: TrainingState
    taken: Taken


class Run:
    """Everything of a run that survives a change of group in this process."""

    def __init__(
        self,
        configuration: RunConfiguration,
        *,
        device: torch.device,
        scratch: Path,
        checkpoint_directory: Path | None,
        stop_at_step: int | None = None,
        choose_dtype: Callable[[Precision, torch.device], torch.dtype] = compute_dtype,
    ) -> None:
        """Warm up: open the data, measure the device. The model waits for its mesh.

        `stop_at_step` ends the run early as if it were complete. `choose_dtype` decides in which
        type a precision is computed on a device.

        Raises:
            ConfigurationError: the run cannot work as it is declared.
        """
        if device.type == "cpu":
            keep_freed_memory()
        model, training = configuration.model, configuration.training
        corpus = open_corpus(
            configuration.data, vocabulary_size=model.vocabulary_size, scratch=scratch
        )
        self._configuration = configuration
        self._device = device
        self._directory = checkpoint_directory
        self._samples = Samples(
            corpus,
            context_length=model.context_length,
            validation_fraction=configuration.data.validation_fraction,
            seed=training.seed,
        )
        compilation.use_cache(checkpoint_directory or scratch)
        self._compilation = Compilation(training.compile, device)
        self._compute_dtype = choose_dtype(training.precision, device)
        self._identity = Identity(
            configuration=configuration,
            last_step=min(training.total_steps, stop_at_step or 1 << 62),
            corpus=corpus.fingerprint,
            peak_flops=peak_flops(device, self._compute_dtype),
        )
        self._state: TrainingState | None = None
        self._writer = self._make_writer()

    def train(
        self,
        group: Group,
        *,
        requests: Requests,
        on_store_port: Callable[[int], None],
        on_progress: Callable[[Progress], None],
        on_phase: Callable[[str], None],
        on_figures: Callable[[ProcessFigures], None] | None = None,
    ) -> Outcome:
        """Form the group, take the newest state, train; the group is always left dissolved.

        `on_store_port` is called on rank 0 only. `on_progress` is called on every rank after each
        step, with the same step, loss, tokens and digest; `validation_loss` is the last one that
        was measured. `on_phase` names what is being done, in one word: Forming, Loading,
        Training, Saving. `on_figures` gets the process' own figures after each step.

        A STOP or REFORM that comes before all members are there gives STOPPED.

        Raises:
            ConfigurationError: the ranks do not have the same run or data, or the checkpoint is
                of another model.
            DivergedError: the loss or the gradient is not finite, on any rank.
            CheckpointError: a checkpoint could not be written.
            GroupLostError: a peer or the store is gone; `train` can be called again.
        """
        listeners = Listeners(
            on_progress=on_progress, on_phase=on_phase, on_figures=on_figures or _ignore
        )
        self._compilation.check(group.mesh)
        samples_at_once = self._samples_at_once(group)
        on_phase("Forming")
        with process_group(
            group,
            device=self._device,
            on_store_port=on_store_port,
            requests=requests,
        ) as is_formed:
            if not is_formed:
                return Outcome.STOPPED
            with computing_together("connecting the axes of the mesh"):
                axes = axis_groups(group.mesh, rank=group.rank, device=self._device)
                state = self._place(group, axes)
            on_phase("Loading")
            if self._writer is not None:
                self._writer.settle()
            taken = take_over(
                self._identity, group, held=self._state, new=state, directory=self._directory
            )
            self._state = state
            self._begin_saving(group, taken)
            formed = _Formed(group=group, axes=axes, state=state, taken=taken)
            return self._loop(formed, samples_at_once, requests, listeners).run()

    def _make_writer(self) -> CheckpointWriter | None:
        settings = self._configuration.checkpoint
        if self._directory is None or settings is None:
            return None
        return CheckpointWriter(
            self._directory, keep=settings.keep, shape=self._configuration.model
        )

    def _samples_at_once(self, group: Group) -> int:
        """Return how many samples this process computes at once.

        Raises:
            ConfigurationError: the global batch cannot be cut for this mesh.
        """
        training, parts = self._configuration.training, group.mesh.data_parallel
        if training.global_batch_size % parts:
            raise ConfigurationError(
                "InvalidBatch",
                f"training.globalBatchSize={training.global_batch_size} is not divisible by the "
                f"{parts} parts of the mesh {group.mesh}; change either",
            )
        try:
            return micro_batch_size(
                training.global_batch_size // parts,
                context_length=self._configuration.model.context_length,
                mesh=group.mesh,
                declared=training.micro_batch_size,
            )
        except ValueError as error:
            raise ConfigurationError("InvalidMicroBatch", str(error)) from None

    def _place(self, group: Group, axes: AxisGroups) -> TrainingState:
        """Return this process' state on the group's mesh: the one it has where its shards are the
        same there, else a new one, which holds nothing yet.
        """
        held = self._state
        if held is not None and _has_same_shards(held.part, group):
            return held
        part = ModelPart(
            self._configuration,
            mesh=group.mesh,
            rank=group.rank,
            compute_dtype=self._compute_dtype,
            device=self._device,
        )
        part.spread(axes)
        weights = {name: shard.tensor for name, shard in part.weights.items()}
        return TrainingState(part, AdamW(weights, self._configuration.optimizer))

    def _begin_saving(self, group: Group, taken: Taken) -> None:
        if self._writer is None or self._state is None:
            return
        token = f"{group.generation}-{taken.formed_at:.6f}"
        self._writer.begin_group(token, rank=group.rank, ranks=group.mesh.size)
        self._writer.prepare(self._state.shards())

    def _loop(
        self, formed: _Formed, samples_at_once: int, requests: Requests, listeners: Listeners
    ) -> Loop:
        configuration, group, state = self._configuration, formed.group, formed.state
        gradient = state.part.gradient
        gradient.join(formed.axes.replicate)
        computing = computation(
            state.part,
            gradient,
            formed.axes,
            batch_size=configuration.training.global_batch_size // group.mesh.data_parallel,
            samples_at_once=samples_at_once,
            loss_scale=1.0 / configuration.tokens_per_step,
        )
        reader = Reader(
            self._samples,
            device=self._device,
            positions=_positions(group, configuration.model.context_length),
        )
        stepper = Stepper(
            configuration,
            group=group,
            state=state,
            gradient=gradient,
            computation=computing,
            reader=reader,
            tied_ends=formed.axes.ends if configuration.model.tied_embeddings else None,
            before_update=self._writer.settle if self._writer else _nothing,
        )
        return Loop(
            configuration=configuration,
            group=group,
            state=state,
            samples=self._samples,
            reader=reader,
            device=self._device,
            computation=computing,
            stepper=stepper,
            compilation=self._compilation,
            writer=self._writer,
            requests=requests,
            listeners=listeners,
            last_step=self._identity.last_step,
            checkpoint_step=formed.taken.checkpoint_step,
            throughput=Throughput(
                tokens_per_step=configuration.tokens_per_step,
                flops_per_token=configuration.model.flops_per_token(),
                peak_flops=formed.taken.peak_flops,
            ),
        )


def _ignore(_: ProcessFigures) -> None:
    """Do nothing with a process' figures."""


def _nothing() -> None:
    """Wait for no checkpoint."""


def _has_same_shards(held: ModelPart, group: Group) -> bool:
    """Whether the weights held are those of this place in the group, in modules that are tied to
    no process group.
    """
    if held.mesh.is_sharded or group.mesh.is_sharded:
        return False
    return held.mesh.stages == group.mesh.stages and process_stages(
        held.mesh, held.rank
    ) == process_stages(group.mesh, group.rank)


def _positions(group: Group, context_length: int) -> torch.Tensor | None:
    """Return which tokens of each sample are computed here; None is all."""
    parts = group.mesh.context
    if parts == 1:
        return None
    return positions(context_length, parts, group.mesh.coordinates(group.rank)["context"])

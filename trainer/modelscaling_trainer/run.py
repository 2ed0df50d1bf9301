"""A run inside one worker process: what survives a change of group, and training in a group."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from modelscaling.growth.trained_model import TrainedModel
from modelscaling.layout import trained_weights
from modelscaling.learning_rates import learning_rate_factors
from modelscaling.protocol import OpenedData
from modelscaling_trainer import compilation
from modelscaling_trainer.checkpoint.writer import CheckpointWriter
from modelscaling_trainer.compilation import Compilation
from modelscaling_trainer.computation import computation
from modelscaling_trainer.data.corpus import open_corpus
from modelscaling_trainer.data.reader import Reader
from modelscaling_trainer.data.samples import Samples
from modelscaling_trainer.device_peak import peak_flops
from modelscaling_trainer.errors import GrowthRejectedError
from modelscaling_trainer.figures import ProcessFigures
from modelscaling_trainer.garbage import uncollected
from modelscaling_trainer.group import Group
from modelscaling_trainer.guard import Guard
from modelscaling_trainer.holdings import Holdings
from modelscaling_trainer.interruption import checking
from modelscaling_trainer.loop import Listeners, Loop
from modelscaling_trainer.memory import keep_freed_memory
from modelscaling_trainer.model_part import ModelPart
from modelscaling_trainer.optimizer import AdamW
from modelscaling_trainer.parallel.meshes import axis_groups, make_room
from modelscaling_trainer.precision import compute_dtype
from modelscaling_trainer.process_group import computing_together, process_group
from modelscaling_trainer.request import Outcome, Request, Requests
from modelscaling_trainer.resumption import History
from modelscaling_trainer.share_of_batch import samples_at_once, token_positions
from modelscaling_trainer.snapshot_plan import partners, pods_of
from modelscaling_trainer.state import TrainingState
from modelscaling_trainer.step import Stepper
from modelscaling_trainer.takeover import Identity, Taken, take_over
from modelscaling_trainer.throughput import Throughput

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    import torch.distributed as dist

    from modelscaling.api.training import Precision
    from modelscaling.configuration import RunConfiguration
    from modelscaling.mesh import Mesh
    from modelscaling.protocol import Progress
    from modelscaling.shape import ModelShape
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
        mesh: Mesh | None = None,
        stop_at_step: int | None = None,
        choose_dtype: Callable[[Precision, torch.device], torch.dtype] = compute_dtype,
    ) -> None:
        """Warm up: open the data, measure the device, and make the model where that can be done
        before its group is there.

        `mesh` is what the process will probably train on. `stop_at_step` ends the run early as if
        it were complete. `choose_dtype` decides in which type a precision is computed on a device.

        Raises:
            ConfigurationError: the run cannot work as it is declared.
        """
        if device.type == "cpu":
            keep_freed_memory()
        self._device = device
        self._directory = checkpoint_directory
        self._scratch = scratch
        self._stop_at_step = stop_at_step
        self._choose_dtype = choose_dtype
        self._holdings = Holdings()
        self._history = History()
        self._configure(configuration)
        if mesh is not None and mesh.size == mesh.dataReplicate:
            self._make_copy(mesh)

    @property
    def data(self) -> OpenedData:
        """What it trains on."""
        return OpenedData(
            data=self._configuration.data,
            vocabulary_size=self._configuration.model.vocabulary_size,
            digest=self._identity.corpus,
        )

    def reconfigure(self, configuration: RunConfiguration) -> None:
        """Train as another run from the next group on, with the state that this process holds.

        Raises:
            ConfigurationError: the run cannot work as it is declared.
        """
        self._holdings.retire()
        self._configure(configuration)

    def _configure(self, configuration: RunConfiguration) -> None:
        model, training = configuration.model, configuration.training
        corpus = open_corpus(
            configuration.data, vocabulary_size=model.vocabulary_size, scratch=self._scratch
        )
        self._configuration = configuration
        self._samples = Samples(
            corpus,
            context_length=model.context_length,
            validation_fraction=configuration.data.validation_fraction,
            seed=training.seed,
        )
        compilation.use_cache(self._directory or self._scratch)
        self._compilation = Compilation(training.compile, self._device)
        self._compute_dtype = self._choose_dtype(training.precision, self._device)
        self._identity = Identity(
            configuration=configuration,
            last_step=min(training.total_steps, self._stop_at_step or 1 << 62),
            corpus=corpus.fingerprint,
            peak_flops=peak_flops(self._device, self._compute_dtype),
        )
        self._writer = self._make_writer(corpus.tokenizer)

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

        A STOP or REFORM that comes before all members are there gives STOPPED. A process that only
        leaves returns RELEASED when all that train have the state.

        Raises:
            ConfigurationError: the ranks do not have the same run or data, or the state is of a
                model that does not become the declared one.
            DivergedError: the loss or the gradient is not finite, on any rank.
            CheckpointError: a checkpoint could not be written.
            GroupLostError: a peer or the store is gone; `train` can be called again.
            GrowthRejectedError: the model grew, and that is taken back; the same.
        """
        listeners = Listeners(
            on_progress=on_progress, on_phase=on_phase, on_figures=on_figures or _ignore
        )
        self._compilation.check(group.mesh)
        at_once = samples_at_once(self._configuration, group.mesh)
        on_phase("Forming")
        with process_group(
            group,
            device=self._device,
            on_store_port=on_store_port,
            requests=requests,
        ) as everybody:
            if everybody is None:
                return Outcome.STOPPED
            if group.is_leaver:
                self._hand_over(group, everybody, listeners)
                return Outcome.RELEASED
            with uncollected():
                formed = self._form(group, everybody, listeners)
            loop = self._loop(formed, at_once, requests, listeners)
            try:
                rejection = loop.judge_growth()
                if rejection is None:
                    self._holdings.keep_only(formed.state)
                    return loop.run()
            except Exception:
                self._history.stop(group)
                raise
            self._holdings.drop(formed.state)
        # Only now: an exception inside cuts the connections, and slower peers still need them.
        raise GrowthRejectedError(rejection)

    def _hand_over(self, group: Group, everybody: dist.ProcessGroup, listeners: Listeners) -> None:
        """Give the others what they need of this process' part of the state."""
        with computing_together("connecting the axes of the mesh"):
            make_room(group.mesh, everybody)
        listeners.on_phase("Loading")
        self._take_over(group, everybody, None)
        if self._writer is not None:
            self._writer.finish()

    def _form(self, group: Group, everybody: dist.ProcessGroup, listeners: Listeners) -> _Formed:
        """Take this process' place in a group that has met, and its part of the state there."""
        with computing_together("connecting the axes of the mesh"):
            axes = axis_groups(
                group.mesh, rank=group.rank, device=self._device, everybody=everybody
            )
        listeners.on_phase("Loading")
        taken = self._take_over(group, everybody, partial(self._place, group, axes))
        assert taken.state is not None
        self._begin_saving(group, taken.state, taken)
        return _Formed(group=group, axes=axes, state=taken.state, taken=taken)

    def _take_over(
        self,
        group: Group,
        everybody: dist.ProcessGroup,
        place: Callable[[TrainedModel], TrainingState] | None,
    ) -> Taken:
        if self._writer is not None:
            self._writer.enter(group.generation)
            self._writer.settle()
        taken = take_over(
            self._identity,
            group,
            everybody,
            find_held=self._holdings.parts,
            place=place,
            history=self._history,
            device=self._device,
            directory=self._directory,
        )
        if taken.state is None or taken.outgrown is None or not taken.outgrown.is_kept:
            self._holdings.keep_only(taken.state)
        return taken

    def _make_writer(self, tokenizer: str | None) -> CheckpointWriter | None:
        settings = self._configuration.checkpoint
        if self._directory is None or settings is None:
            return None
        return CheckpointWriter(
            self._directory,
            keep=settings.keep,
            tokenizer=tokenizer,
            keeps_best=self._configuration.training.early_stopping is not None,
        )

    def _make_copy(self, mesh: Mesh) -> None:
        """Make a copy of the whole model, which is the same for all ranks, and take its memory:
        touching new pages takes longer than filling them.
        """
        model = TrainedModel(shape=self._configuration.model)
        state = self._new_state(model, mesh, rank=0, axes=None)
        for shard in state.shards().values():
            shard.tensor.zero_()
        self._holdings.add(state)

    def _place(self, group: Group, axes: AxisGroups, model: TrainedModel) -> TrainingState:
        """Return this process' state of a model on the group's mesh: the one it has where its
        shards are the same there, else a new one, which holds nothing yet.
        """
        state = self._holdings.reusable(group, model)
        if state is None:
            if self._holdings.drop_torn():
                # Sharded modules are in cycles, and there may not be memory for one more.
                gc.collect()
            with computing_together("laying the model out"):
                state = self._new_state(model, group.mesh, rank=group.rank, axes=axes)
        self._holdings.add(state)
        return state

    def _new_state(
        self, model: TrainedModel, mesh: Mesh, *, rank: int, axes: AxisGroups | None
    ) -> TrainingState:
        part = ModelPart(
            self._configuration.model_copy(update={"model": model.shape}),
            mesh=mesh,
            rank=rank,
            compute_dtype=self._compute_dtype,
            device=self._device,
        )
        part.spread(axes)
        trained = trained_weights(model.shape)
        weights = {name: part.weights[name].tensor for name in trained if name in part.weights}
        heritage = {
            name: whole.within(part.weights[name].piece.region)
            for name, whole in model.heritage().items()
            if name in weights
        }
        settings = self._configuration.optimizer
        factors = learning_rate_factors(model.shape, settings.learning_rate_factors)
        optimizer = AdamW(weights, settings, heritage, factors=factors)
        return TrainingState(part, optimizer, lineage=model.lineage)

    def _begin_saving(self, group: Group, state: TrainingState, taken: Taken) -> None:
        if self._writer is None:
            return
        self._writer.begin_group(
            f"{taken.formed_at:.6f}",
            model=state.model,
            generation=group.generation,
            rank=group.rank,
            ranks=group.mesh.size,
        )
        self._writer.prepare(state.shards())

    def _guard(self, formed: _Formed) -> Guard:
        group, pods = formed.group, pods_of(formed.taken.local_ranks)
        return Guard(
            self._holdings.snapshots,
            partners(group.mesh, group.rank, pods),
            formed.axes.members,
            pod_processes=pods.count(pods[group.rank]),
        )

    def _loop(
        self, formed: _Formed, at_once: int, requests: Requests, listeners: Listeners
    ) -> Loop:
        configuration, group, state = self._configuration, formed.group, formed.state
        gradient = state.part.gradient
        gradient.join(formed.axes.replicate)
        for stage in state.part.stages:
            stage.between_layers = checking(requests.check_abandoned)
        computing = computation(
            state.part,
            gradient,
            formed.axes,
            batch_size=configuration.training.global_batch_size // group.mesh.data_parallel,
            samples_at_once=at_once,
            loss_scale=1.0 / configuration.tokens_per_step,
        )
        reader = Reader(
            self._samples,
            device=self._device,
            positions=token_positions(group, configuration.model.context_length),
        )
        stepper = Stepper(
            configuration,
            group=group,
            members=formed.axes.members,
            state=state,
            gradient=gradient,
            computation=computing,
            reader=reader,
            tied_ends=formed.axes.ends if _trains_tied_table(configuration.model) else None,
            before_update=self._writer.settle if self._writer else _nothing,
        )
        return Loop(
            configuration=configuration,
            group=group,
            members=formed.axes.members,
            state=state,
            samples=self._samples,
            reader=reader,
            device=self._device,
            computation=computing,
            stepper=stepper,
            compilation=self._compilation,
            writer=self._writer,
            guard=self._guard(formed),
            requests=requests,
            listeners=listeners,
            last_step=self._identity.last_step,
            history=self._history,
            origin=formed.taken.origin,
            outgrown=formed.taken.outgrown,
            checkpoint_step=formed.taken.checkpoint_step,
            throughput=Throughput(
                tokens_per_step=configuration.tokens_per_step,
                flops_per_token=configuration.model.flops_per_token(),
                peak_flops=formed.taken.peak_flops,
            ),
        )


def _trains_tied_table(shape: ModelShape) -> bool:
    return shape.tied_embeddings and shape.lora is None


def _ignore(_: ProcessFigures) -> None:
    """Do nothing with a process' figures."""


def _nothing() -> None:
    """Wait for no checkpoint."""

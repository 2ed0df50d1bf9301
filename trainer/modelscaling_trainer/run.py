"""A run inside one worker process: what survives a change of group, and training in a group."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from modelscaling.layout import process_stages
from modelscaling.micro_batch import micro_batch_size
from modelscaling_trainer import checkpoint, compilation
from modelscaling_trainer.checkpoint_writer import CheckpointWriter
from modelscaling_trainer.compilation import Compilation
from modelscaling_trainer.computation import computation
from modelscaling_trainer.corpus import open_corpus
from modelscaling_trainer.device_peak import peak_flops
from modelscaling_trainer.errors import ConfigurationError
from modelscaling_trainer.figures import ProcessFigures
from modelscaling_trainer.group import Group
from modelscaling_trainer.loop import Listeners, Loop
from modelscaling_trainer.memory import keep_freed_memory
from modelscaling_trainer.model_part import ModelPart
from modelscaling_trainer.optimizer import MOMENTS, AdamW
from modelscaling_trainer.parallel.context import positions
from modelscaling_trainer.parallel.meshes import axis_groups
from modelscaling_trainer.precision import compute_dtype
from modelscaling_trainer.process_group import all_gather, computing_together, process_group
from modelscaling_trainer.reader import Reader
from modelscaling_trainer.redistribution import move, transfers
from modelscaling_trainer.request import Outcome, Request, Requests
from modelscaling_trainer.samples import Samples
from modelscaling_trainer.settlement import Holding, Initialise, Keep, Load, Move, settle
from modelscaling_trainer.state import MODEL, NOTHING, Counters, TrainingState
from modelscaling_trainer.step import Stepper
from modelscaling_trainer.throughput import Throughput

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

    from modelscaling.configuration import RunConfiguration
    from modelscaling.protocol import Progress
    from modelscaling_trainer.parallel.meshes import AxisGroups

__all__ = ["Group", "Outcome", "ProcessFigures", "Request", "Requests", "Run"]

_log = logging.getLogger(__name__)


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
    ) -> None:
        """Warm up: open the data, build the model.

        `stop_at_step` ends the run early as if it were complete.

        Raises:
            ConfigurationError: the run cannot work as it is declared.
        """
        if device.type == "cpu":
            keep_freed_memory()
        self._configuration = configuration
        self._device = device
        self._directory = checkpoint_directory
        self._last_step = min(configuration.training.total_steps, stop_at_step or 1 << 62)
        model, training = configuration.model, configuration.training
        self._corpus = open_corpus(
            configuration.data, vocabulary_size=model.vocabulary_size, scratch=scratch
        )
        self._samples = Samples(
            self._corpus,
            context_length=model.context_length,
            validation_fraction=configuration.data.validation_fraction,
            seed=training.seed,
        )
        compilation.use_cache(checkpoint_directory or scratch)
        self._compilation = Compilation(training.compile, device)
        self._compute_dtype = compute_dtype(training.precision, device)
        self._peak_flops = peak_flops(device, self._compute_dtype)
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
        on_phase("Forming")
        samples_at_once = self._samples_at_once(group)
        with process_group(
            group,
            device=self._device,
            on_store_port=on_store_port,
            is_withdrawn=requests.asks_to_leave,
        ) as is_formed:
            if not is_formed:
                return Outcome.STOPPED
            with computing_together("connecting the axes of the mesh"):
                groups = axis_groups(group.mesh, rank=group.rank, device=self._device)
                state = self._place(group, groups)
            on_phase("Loading")
            offers = self._take_state(group, state)
            return self._loop(group, groups, samples_at_once, offers, requests, listeners).run()

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
            raise ConfigurationError("InvalidMicroBatch", f"training.{error}") from None

    def _place(self, group: Group, groups: AxisGroups) -> TrainingState:
        """Return this process' state on the group's mesh: the one it has where its shards are the
        same there, else a new one, which holds nothing yet.
        """
        held = self._state
        if held is not None and _has_same_shards(held, group):
            return held
        part = ModelPart(
            self._configuration,
            mesh=group.mesh,
            rank=group.rank,
            compute_dtype=self._compute_dtype,
            device=self._device,
        )
        part.spread(groups)
        weights = {name: shard.tensor for name, shard in part.weights.items()}
        return TrainingState(part, AdamW(weights, self._configuration.optimizer))

    def _make_writer(self) -> CheckpointWriter | None:
        settings = self._configuration.checkpoint
        if self._directory is None or settings is None:
            return None
        return CheckpointWriter(
            self._directory, keep=settings.keep, shape=self._configuration.model
        )

    def _take_state(self, group: Group, state: TrainingState) -> list[dict[str, Any]]:
        """Bring all ranks to the newest state that they have; return what each offered.

        What this process held before is let go when the new state is there, not earlier: the group
        may be lost in between.
        """
        damaged: set[int] = set()
        while True:
            offers = all_gather(self._offer(damaged))
            _check_same(offers)
            decision = settle([_holding(offer) for offer in offers], group.mesh)
            _log.info("state of the group: %s", decision)
            match decision:
                case Keep():
                    pass
                case Move():
                    self._move(group, state, decision, offers)
                case Initialise():
                    state.initialise(self._configuration.training.seed)
                case Load(step=step):
                    if not self._load(state, step):
                        damaged.add(step)
                        continue
            self._state = state
            state.sit_at(group.mesh, group.rank)
            state.start_clock(offers[0]["now"])
            return offers

    def _move(
        self, group: Group, state: TrainingState, decision: Move, offers: list[dict[str, Any]]
    ) -> None:
        """Fill `state` from the memories of the ranks that hold it."""
        source = next(iter(decision.holders))
        counters = Counters(**offers[source]["counters"])
        old = None
        if self._state is not None and group.rank in decision.holders:
            old = self._state.shards()
        plan = transfers(
            self._configuration.model,
            before=decision.mesh,
            holders=decision.holders,
            after=group.mesh,
        )
        with state.changing(counters):
            move(plan, rank=group.rank, old=old, new=state.shards(), kinds=(MODEL, *MOMENTS))
            state.optimizer.set_steps(counters.step)

    def _offer(self, damaged: set[int]) -> dict[str, Any]:
        """Return what this rank is and has, for the others."""
        newest = self._directory and checkpoint.find_newest(self._directory, except_steps=damaged)
        held = self._state
        counters = held.counters if held is not None and held.step >= 0 else None
        return {
            "configuration": self._configuration.model_dump(mode="json"),
            "last_step": self._last_step,
            "corpus": self._corpus.fingerprint,
            "memory_step": NOTHING if held is None else held.step,
            "counters": counters and asdict(counters),
            "mesh": None if held is None else held.mesh,
            "rank": 0 if held is None else held.rank,
            "checkpoint_step": checkpoint.step_of(newest or None),
            "peak_flops": self._peak_flops,
            "now": time.time(),
        }

    def _load(self, state: TrainingState, step: int) -> bool:
        """Load a checkpoint on all ranks; return whether all could."""
        found = self._directory and checkpoint.find(self._directory, step)
        if found:
            checkpoint.check_shape(found, self._configuration.model)
        is_loaded = bool(found and state.load(found.load, found.counters))
        return all(answer["is_loaded"] for answer in all_gather({"is_loaded": is_loaded}))

    def _loop(
        self,
        group: Group,
        groups: AxisGroups,
        samples_at_once: int,
        offers: list[dict[str, Any]],
        requests: Requests,
        listeners: Listeners,
    ) -> Loop:
        configuration, state = self._configuration, self._state
        assert state is not None
        gradient = state.part.gradient
        gradient.join(groups.replicate)
        computing = computation(
            state.part,
            gradient,
            groups,
            batch_size=configuration.training.global_batch_size // group.mesh.data_parallel,
            samples_at_once=samples_at_once,
            loss_scale=1.0 / configuration.tokens_per_step,
        )
        reader = Reader(
            self._samples,
            device=self._device,
            positions=_positions(group, configuration.model.context_length),
        )
        is_tied = configuration.model.tied_embeddings
        return Loop(
            configuration=configuration,
            group=group,
            state=state,
            samples=self._samples,
            reader=reader,
            device=self._device,
            computation=computing,
            stepper=Stepper(
                configuration,
                group=group,
                state=state,
                gradient=gradient,
                computation=computing,
                reader=reader,
                tied_ends=groups.ends if is_tied else None,
            ),
            compilation=self._compilation,
            writer=self._writer,
            requests=requests,
            listeners=listeners,
            last_step=self._last_step,
            checkpoint_step=max(offer["checkpoint_step"] for offer in offers),
            throughput=Throughput(
                tokens_per_step=configuration.tokens_per_step,
                flops_per_token=configuration.model.flops_per_token(),
                peak_flops=sum(offer["peak_flops"] for offer in offers),
            ),
        )


def _has_same_shards(held: TrainingState, group: Group) -> bool:
    """Whether a state's shards are those of this place in the group, in modules that know no
    process group.
    """
    if held.mesh.is_sharded or group.mesh.is_sharded:
        return False
    before = process_stages(held.mesh, held.rank)
    return held.mesh.stages == group.mesh.stages and before == process_stages(
        group.mesh, group.rank
    )


def _positions(group: Group, context_length: int) -> torch.Tensor | None:
    """Return which tokens of each sample are computed here; None is all."""
    mesh = group.mesh
    if mesh.context == 1:
        return None
    return positions(context_length, mesh.context, mesh.coordinates(group.rank)["context"])


def _holding(offer: dict[str, Any]) -> Holding:
    return Holding(
        memory_step=offer["memory_step"],
        memory_digest=offer["counters"] and offer["counters"]["sample_digest"],
        mesh=offer["mesh"] if offer["counters"] else None,
        rank=offer["rank"],
        checkpoint_step=offer["checkpoint_step"],
    )


def _ignore(_: ProcessFigures) -> None:
    """Do nothing with a process' figures."""


def _check_same(offers: list[dict[str, Any]]) -> None:
    """Refuse a group whose ranks do not do the same work."""
    first = offers[0]
    for rank, offer in enumerate(offers):
        for what in ("configuration", "last_step"):
            difference = _difference(what, first[what], offer[what])
            if difference:
                raise ConfigurationError(
                    "ConfigurationMismatch",
                    f"{difference[0]} is {difference[1]!r} on rank 0 and {difference[2]!r} on "
                    f"rank {rank}; start all processes with the same configuration",
                )
        if offer["corpus"] != first["corpus"]:
            raise ConfigurationError(
                "DataMismatch",
                f"the data is {first['corpus']} on rank 0 and {offer['corpus']} on rank {rank} "
                f"(digests of its tokens); mount the same files into all pods",
            )


def _difference(name: str, first: object, other: object) -> tuple[str, object, object] | None:
    """Return the name of a field that differs, with both values, or None."""
    if isinstance(first, dict) and isinstance(other, dict):
        for key in first.keys() | other.keys():
            difference = _difference(f"{name}.{key}", first.get(key), other.get(key))
            if difference:
                return difference
        return None
    return None if first == other else (name, first, other)

"""A run inside one worker process: what survives a change of group, and training in a group."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from modelscaling_trainer import checkpoint, compilation
from modelscaling_trainer.checkpoint_writer import CheckpointWriter
from modelscaling_trainer.compilation import Compilation
from modelscaling_trainer.corpus import open_corpus
from modelscaling_trainer.decoder import Decoder
from modelscaling_trainer.device_peak import peak_flops
from modelscaling_trainer.errors import ConfigurationError
from modelscaling_trainer.figures import ProcessFigures
from modelscaling_trainer.gradient import Gradient
from modelscaling_trainer.group import Group
from modelscaling_trainer.loop import Listeners, Loop
from modelscaling_trainer.memory import keep_freed_memory
from modelscaling_trainer.micro_batch import micro_batch_size
from modelscaling_trainer.optimizer import AdamW
from modelscaling_trainer.precision import compute_dtype
from modelscaling_trainer.process_group import all_gather, process_group
from modelscaling_trainer.request import Outcome, Request, Requests
from modelscaling_trainer.samples import Samples
from modelscaling_trainer.settlement import Broadcast, Holding, Initialise, Keep, settle
from modelscaling_trainer.state import Counters, TrainingState
from modelscaling_trainer.step import BatchPart, Stepper
from modelscaling_trainer.throughput import Throughput

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

    from modelscaling.configuration import RunConfiguration
    from modelscaling.protocol import Progress

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
        self._build(compute_dtype(training.precision, device))
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
        part = self._part(group)
        on_phase("Forming")
        with process_group(
            group,
            device=self._device,
            on_store_port=on_store_port,
            is_withdrawn=requests.asks_to_leave,
        ) as is_formed:
            if not is_formed:
                return Outcome.STOPPED
            on_phase("Loading")
            offers = self._take_state()
            return self._loop(group, part, offers, requests, listeners).run()

    def _build(self, dtype: torch.dtype) -> None:
        """Build the model with the first weights of the run, and measure the device."""
        configuration = self._configuration
        model = Decoder(configuration.model, compute_dtype=dtype).to(self._device)
        self._state = TrainingState(model, AdamW(model.parameters(), configuration.optimizer))
        self._state.initialise(configuration.training.seed)
        self._stepper = Stepper(
            configuration,
            state=self._state,
            gradient=Gradient(model.parameters()),
            samples=self._samples,
        )
        self._peak_flops = peak_flops(self._device, dtype)

    def _make_writer(self) -> CheckpointWriter | None:
        settings = self._configuration.checkpoint
        if self._directory is None or settings is None:
            return None
        return CheckpointWriter(
            self._directory, keep=settings.keep, shape=self._configuration.model
        )

    def _part(self, group: Group) -> BatchPart:
        """Return which part of each global batch is this rank's."""
        batch, ranks = self._configuration.training.global_batch_size, group.mesh.data_parallel
        if batch % ranks:
            raise ConfigurationError(
                "InvalidBatch",
                f"training.globalBatchSize={batch} is not divisible by the {ranks} processes of "
                f"the group; change either",
            )
        size = batch // ranks
        at_once = micro_batch_size(
            size,
            context_length=self._configuration.model.context_length,
            declared=self._configuration.training.micro_batch_size,
        )
        return BatchPart(first=group.rank * size, size=size, samples_at_once=at_once)

    def _take_state(self) -> list[dict[str, Any]]:
        """Bring all ranks to the newest state that any of them has; return what each offered."""
        damaged: set[int] = set()
        while True:
            offers = all_gather(self._offer(damaged))
            _check_same(offers)
            decision = settle([Holding(**offer["holding"]) for offer in offers])
            _log.info("state of the group: %s", decision)
            match decision:
                case Keep():
                    pass
                case Broadcast(source=source):
                    counters = Counters(**offers[source]["counters"])
                    self._state.broadcast(counters, source=source)
                case Initialise():
                    self._state.initialise(self._configuration.training.seed)
                case _ if not self._load(decision.step):
                    damaged.add(decision.step)
                    continue
            self._state.start_clock(offers[0]["now"])
            return offers

    def _offer(self, damaged: set[int]) -> dict[str, Any]:
        """Return what this rank is and has, for the others."""
        newest = self._directory and checkpoint.find_newest(self._directory, except_steps=damaged)
        counters = self._state.counters if self._state.step >= 0 else None
        holding = Holding(
            memory_step=self._state.step,
            memory_digest=counters.sample_digest if counters else None,
            checkpoint_step=checkpoint.step_of(newest or None),
        )
        return {
            "configuration": self._configuration.model_dump(mode="json"),
            "last_step": self._last_step,
            "corpus": self._corpus.fingerprint,
            "holding": asdict(holding),
            "counters": counters and asdict(counters),
            "peak_flops": self._peak_flops,
            "now": time.time(),
        }

    def _load(self, step: int) -> bool:
        """Load a checkpoint on all ranks; return whether all could."""
        found = self._directory and checkpoint.find(self._directory, step)
        if found:
            checkpoint.check_shape(found, self._configuration.model)
        is_loaded = bool(found and self._state.load(found.load, found.counters))
        return all(answer["is_loaded"] for answer in all_gather({"is_loaded": is_loaded}))

    def _loop(
        self,
        group: Group,
        part: BatchPart,
        offers: list[dict[str, Any]],
        requests: Requests,
        listeners: Listeners,
    ) -> Loop:
        configuration = self._configuration
        return Loop(
            configuration=configuration,
            group=group,
            part=part,
            state=self._state,
            samples=self._samples,
            stepper=self._stepper,
            compilation=self._compilation,
            writer=self._writer,
            requests=requests,
            listeners=listeners,
            last_step=self._last_step,
            checkpoint_step=max(offer["holding"]["checkpoint_step"] for offer in offers),
            throughput=Throughput(
                tokens_per_step=configuration.tokens_per_step,
                flops_per_token=configuration.model.flops_per_token(),
                peak_flops=sum(offer["peak_flops"] for offer in offers),
            ),
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

"""Saving while training goes on: a thread copies what this process is to write, then writes it.

Weights and moments change only in the optimizer's step, so the copy is taken while the next step
is computed; `settle()` waits for it before they change. No collective runs: which block is whose
follows from the layout, and the first process of the group gathers the parts on the file system
that all share.

Saving now and then must not end what it is to protect: a checkpoint that could not be written is
named in the log and in `failure`, and the next one is tried as if nothing had happened. Only who
waits for a checkpoint is told by an exception.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

from modelscaling_trainer.checkpoint import fence
from modelscaling_trainer.checkpoint.attempt import Attempt, GivenUpError
from modelscaling_trainer.checkpoint.catalog import find_best, prune
from modelscaling_trainer.checkpoint.part import Block, dtype_name, in_file_order
from modelscaling_trainer.checkpoint.share import share
from modelscaling_trainer.checkpoint.staging import Staging
from modelscaling_trainer.errors import CheckpointError, DivergedError, GroupLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from modelscaling.growth.trained_model import TrainedModel
    from modelscaling.validation_history import Validation
    from modelscaling_trainer.shard import Shard
    from modelscaling_trainer.state import Counters

_log = logging.getLogger(__name__)

PARTS_TIMEOUT_S = 300.0
"""How long the first process waits, after its own part, for those of the others."""
PATIENCE_S = 10.0
"""How long a save waits for the one before: a volume that hangs must not hold up training."""
LAST_PATIENCE_S = PARTS_TIMEOUT_S + 60.0
"""How long one does that training ends with, and how long such a one is waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A process' place in a group."""

    model: TrainedModel
    """What the group trains."""
    generation: int
    token: str
    rank: int
    ranks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Save:
    """What one call of `save` is about."""

    attempt: Attempt
    model: TrainedModel
    counters: Counters
    learning_rate: float
    blocks: list[Block]
    tensors: list[Tensor]
    """What the blocks are copied from."""
    ready: torch.cuda.Event | None
    started: float
    is_copied: threading.Event = field(default_factory=threading.Event)
    is_written: threading.Event = field(default_factory=threading.Event)
    give_up: threading.Event = field(default_factory=threading.Event)


class CheckpointWriter:
    """Writes this process' part of one checkpoint at a time; rank 0 publishes it."""

    def __init__(
        self,
        directory: Path,
        *,
        keep: int,
        tokenizer: str | None,
        keeps_best: bool = False,
        parts_timeout_s: float = PARTS_TIMEOUT_S,
    ) -> None:
        """`keep` is how many checkpoints stay, the one of the best validation beside them with
        `keeps_best`; `tokenizer` is the identity of the data's; `begin_group` comes before the
        first save.
        """
        self._directory = directory
        self._keep = keep
        self._tokenizer = tokenizer
        self._keeps_best = keeps_best
        self._parts_timeout_s = parts_timeout_s
        self._staging = Staging()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._place: _Place | None = None
        self._save: _Save | None = None
        self._tasks: list[Future[None]] = []
        self._claiming: list[Future[None]] = []
        self.written_step: int | None = None
        """The step of the newest checkpoint that this process has published."""
        self.written_seconds: float | None = None
        """How long that one took from its save to its publication."""
        self.best: Validation | None = None
        """The best validation whose checkpoint is kept, as far as this process has looked."""
        self.failure: str | None = None
        """Why the last save came to nothing, as this process knows; None where it did not."""

    def enter(self, generation: int) -> None:
        """Know of a group that forms with this process: what is under way for the group before may
        still be published then, as the new one knows of it.
        """
        if self._place is not None:
            self._place = replace(self._place, generation=generation)
        # That a newer group had taken the place of the one before is no news for this one.
        self._tasks = [
            task
            for task in self._tasks
            if not (task.done() and isinstance(task.exception(), GroupLostError))
        ]

    def begin_group(
        self, token: str, *, model: TrainedModel, generation: int, rank: int, ranks: int
    ) -> None:
        """Take a place in a group that saves together, and claim the directory for it.

        `token` is the same for all of them, is a part of a file's name, and is used by no other
        group of the same `generation` in the same directory, be it of an earlier start of the run.
        A checkpoint of the group before is published if its parts come before the next save.
        """
        self._place = _Place(
            model=model, generation=generation, token=token, rank=rank, ranks=ranks
        )
        if rank == 0:
            self._claiming = [self._thread.submit(self._claim, generation)]

    def prepare(self, shards: Mapping[str, Shard]) -> None:
        """Take the memory for saving these in the background: new pages take several times longer
        than copying into old ones, and the first save would wait for them.
        """
        _, tensors = _sources(shards)
        self._thread.submit(self._staging.prepare, tensors, _ready(shards))

    def save(
        self,
        shards: Mapping[str, Shard],
        counters: Counters,
        *,
        learning_rate: float,
        patience_s: float = PATIENCE_S,
    ) -> bool:
        """Begin to save the state, on every rank of the group; `settle` before it changes.

        Returns False, with the reason in `failure`, where the checkpoint before is not written
        within `patience_s`. `learning_rate` is for the message of a state that has diverged.

        Raises:
            DivergedError: the one before was not finite.
            GroupLostError: a newer group saves to the directory.
        """
        if self._place is None:
            raise RuntimeError("begin_group() was not called, so nobody knows who else writes")
        if self._save is not None and self._save.attempt.token != self._place.token:
            self._save.give_up.set()
        if not self._has_ended(patience_s):
            self._fail(
                f"step {counters.step} is not saved, as the checkpoint before is still being "
                f"written to {str(self._directory)!r}; look after the volume"
            )
            return False
        started = time.monotonic()
        blocks, tensors = _sources(shards)
        self._save = _Save(
            attempt=Attempt(
                directory=self._directory,
                step=counters.step,
                generation=self._place.generation,
                token=self._place.token,
                rank=self._place.rank,
                ranks=self._place.ranks,
            ),
            model=self._place.model,
            counters=counters,
            learning_rate=learning_rate,
            blocks=blocks,
            tensors=tensors,
            ready=_ready(shards),
            started=started,
        )
        self._tasks = [self._thread.submit(self._run, self._save, self._write)]
        if self._place.rank == 0:
            self._tasks.append(self._thread.submit(self._run, self._save, self._publish))
        return True

    def settle(self) -> None:
        """Wait until the state may change: until the copy of it is taken.

        Raises:
            DivergedError: it is known by now that the state is not finite.
            GroupLostError: it is known by now that a newer group saves to the directory.
        """
        if self._save is None:
            return
        self._save.is_copied.wait()
        if all(task.done() for task in self._tasks):
            self._has_ended(0)

    def finish(self) -> None:
        """Give what is under way a while before this process leaves.

        Raises:
            DivergedError: the state was not finite.
            GroupLostError: a newer group saves to the directory.
        """
        self._has_ended(PATIENCE_S)

    def wait_for_part(self) -> None:
        """Wait until this rank's part is written, which does not depend on other ranks.

        Raises:
            CheckpointError: it could not be written.
            DivergedError: it is not finite.
            GroupLostError: a newer group saves to the directory.
        """
        if self._tasks:
            self._result(self._tasks[0])

    def wait(self) -> None:
        """Wait until this rank's part is written; on rank 0, until the checkpoint is published.

        Raises:
            CheckpointError: it could not be written, by this rank or, on rank 0, by another.
            DivergedError: the state is not finite, so it is not published.
            GroupLostError: a newer group saves to the directory.
        """
        for task in self._tasks:
            self._result(task)
        self._tasks, self._save = [], None

    def _has_ended(self, timeout_s: float) -> bool:
        """Whether the last save has ended by then; what nobody waited for is forgotten.

        Raises:
            DivergedError, GroupLostError: it has shown that training must end.
        """
        _, running = wait([*self._claiming, *self._tasks], timeout=timeout_s)
        if running:
            return False
        tasks, self._tasks, self._save = self._tasks, [], None
        for task in tasks:
            if isinstance(error := task.exception(), (DivergedError, GroupLostError)):
                raise error
        return True

    def _result(self, task: Future[None]) -> None:
        try:
            task.result(timeout=LAST_PATIENCE_S)
        except TimeoutError as error:
            raise CheckpointError(
                f"a checkpoint was not written to {str(self._directory)!r} within "
                f"{LAST_PATIENCE_S:g} s; look after the volume"
            ) from error
        except Exception:
            self._tasks, self._save = [], None
            raise

    def _claim(self, generation: int) -> None:
        """Claim the directory before the first save does it again: a group that was cut off should
        know as soon as it can.
        """
        try:
            fence.claim(self._directory, generation)
            if self._keeps_best:
                self.best = find_best(self._directory)
        except OSError as error:
            _log.warning("could not claim %s: %s", self._directory, error)
        except GroupLostError as error:
            _log.warning("%s", error.message)

    def _run(self, save: _Save, work: Callable[[_Save], None]) -> None:
        """Do a part of a save in the thread; tell the caller, and rank 0, what goes wrong."""
        try:
            work(save)
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            failure = CheckpointError(
                f"could not write a checkpoint below {str(self._directory)!r}: {error}; those "
                f"before it are whole; make room on the volume, or make it writable"
            )
            self._end_failed(save, failure)
            raise failure from error
        except (CheckpointError, DivergedError) as error:
            self._end_failed(save, error)
            raise
        except GroupLostError:
            save.attempt.discard()
            raise
        except GivenUpError as error:
            _log.warning("gave up the checkpoint of step %d: %s", save.counters.step, error)
            if save.attempt.rank == 0:
                save.attempt.discard()

    def _write(self, save: _Save) -> None:
        attempt = save.attempt
        try:
            self._staging.copy(save.tensors, save.ready)
        finally:
            save.tensors.clear()  # of a state that is perhaps held for this alone
            save.is_copied.set()
        if not self._staging.is_finite():
            raise DivergedError(
                f"the state of step {save.counters.step} is not finite, so it is not saved; "
                f"lower training.learningRate={save.learning_rate:g}"
            )
        assert self._place is not None
        # Not the number of the group that saves: it may end in the next one, see enter().
        if attempt.rank == 0:
            fence.claim(self._directory, self._place.generation)
            fence.remove_older_attempts(self._directory, attempt.generation)
        else:
            fence.check(self._directory, self._place.generation)
        attempt.write(save.blocks, self._staging.data)
        save.is_written.set()
        if attempt.rank:
            self.failure = None

    def _publish(self, save: _Save) -> None:
        assert self._place is not None
        if not save.is_written.is_set():
            return
        try:
            save.attempt.wait_for_parts(timeout_s=self._parts_timeout_s, give_up=save.give_up)
        except GivenUpError as error:
            if save.attempt.token != self._place.token:
                raise
            raise CheckpointError(
                f"the checkpoint of step {save.counters.step} below {str(self._directory)!r} is "
                f"not complete: {error}; their logs say why"
            ) from error
        fence.check(self._directory, self._place.generation)
        save.attempt.publish(save.counters, save.model, tokenizer=self._tokenizer)
        self.failure = None
        self.written_step = save.counters.step
        self.written_seconds = time.monotonic() - save.started
        _log.info("wrote the checkpoint of step %d", save.counters.step)
        self.best = prune(self._directory, keep=self._keep, keeps_best=self._keeps_best)

    def _fail(self, why: str) -> None:
        _log.warning("%s", why)
        self.failure = why

    def _end_failed(self, save: _Save, error: CheckpointError | DivergedError) -> None:
        self._fail(error.message)
        if save.attempt.rank == 0:
            save.attempt.discard()
        else:
            save.attempt.report(error)


def _sources(shards: Mapping[str, Shard]) -> tuple[list[Block], list[Tensor]]:
    """Return the blocks that this process writes in the order of its file, and what each is
    copied from.
    """
    found = {}
    for name, shard in shards.items():
        tensor, piece = shard.tensor.detach(), shard.piece
        region = share(name, piece, element_bytes=tensor.element_size())
        if region is not None:
            block = Block(
                name=name, dtype=dtype_name(tensor.dtype), shape=piece.shape, region=region
            )
            found[block] = tensor[region.within(piece.region)]
    blocks = in_file_order(list(found))
    return blocks, [found[block] for block in blocks]


def _ready(shards: Mapping[str, Shard]) -> torch.cuda.Event | None:
    """Return what a device has to do before its tensors are those of now; None on a CPU."""
    devices = {shard.tensor.device for shard in shards.values() if shard.tensor.is_cuda}
    if not devices:
        return None
    ready: torch.cuda.Event = torch.cuda.current_stream(devices.pop()).record_event()
    return ready

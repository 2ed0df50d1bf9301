"""Saving while training goes on: a copy is taken at once, and written by a thread.

With data parallelism every rank holds the whole state, so rank 0 alone writes, and no collective
runs beside those of training.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

import torch

from modelscaling_trainer.checkpoint import prune, write
from modelscaling_trainer.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from modelscaling.shape import ModelShape
    from modelscaling_trainer.state import Counters, TrainingState

_log = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes one checkpoint at a time into a directory."""

    def __init__(self, directory: Path, *, keep: int, shape: ModelShape) -> None:
        self._directory = directory
        self._keep = keep
        self._shape = shape
        self._staged: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._importing: threading.Thread | None = None
        self._error: CheckpointError | None = None
        self.written_step: int | None = None
        """The step of the newest checkpoint that this process has published."""
        self.written_seconds: float | None = None
        """How long that one took from its copy to its publication."""

    def warm_up(self) -> None:
        """Import what saving and loading need in the background, once: 3 s that no first step
        waits for and no recovery has to spend.
        """
        if self._importing is None:
            load = partial(importlib.import_module, "torch.distributed.checkpoint")
            self._importing = threading.Thread(target=load, name="import", daemon=True)
            self._importing.start()

    def save(self, state: TrainingState) -> None:
        """Copy the state, which blocks, and write the copy in the background.

        Waits for the checkpoint before it.

        Raises:
            CheckpointError: the one before could not be written.
        """
        self.wait()
        started = time.monotonic()
        self._stage(state.tensors())
        self._thread = threading.Thread(
            target=self._write, args=(state.counters, started), name="checkpoint"
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _stage(self, tensors: dict[str, Tensor]) -> None:
        """Copy into memory that is kept: touching new pages takes longer than copying."""
        for name, tensor in tensors.items():
            if name not in self._staged:
                self._staged[name] = torch.empty_like(tensor, device="cpu")
            self._staged[name].copy_(tensor)

    def _write(self, counters: Counters, started: float) -> None:
        try:
            write(self._directory, self._staged, counters, self._shape)
            self.written_step = counters.step
            self.written_seconds = time.monotonic() - started
            prune(self._directory, keep=self._keep)
        except CheckpointError as error:
            self._error = error  # raised by wait(), in the caller's thread
            return
        _log.info("wrote the checkpoint of step %d", counters.step)

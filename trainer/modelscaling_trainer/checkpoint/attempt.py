"""One attempt of a group to write the checkpoint of a step: a directory that all its processes
share, and the protocol on it, which needs nothing but the file system.

Every process writes its part under another name, and renames it when it is on the disk; one that
cannot leaves a note that says why. The first process waits until all parts are there, adds the
description, and renames the directory. The directory's name has the group's token, so what an
attempt of another group left is never taken for a part of this one.
"""

from __future__ import annotations

import errno
import json
import shutil
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelscaling_trainer.checkpoint.catalog import read, write_description
from modelscaling_trainer.checkpoint.directory import (
    TEMPORARY,
    name_of,
    remove,
    sync_directory,
)
from modelscaling_trainer.checkpoint.index import index
from modelscaling_trainer.checkpoint.part import read_blocks, write_part
from modelscaling_trainer.errors import CheckpointError, DivergedError

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from modelscaling.growth.trained_model import TrainedModel
    from modelscaling_trainer.checkpoint.part import Block
    from modelscaling_trainer.state import Counters

_POLL_S = 0.02
_PART = ".safetensors"
_UNFINISHED = ".unfinished"
_FAILED = ".failed"


class GivenUpError(Exception):
    """The attempt has ended without a checkpoint, and nobody is to blame: processes are gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One process' place in an attempt."""

    directory: Path
    """Of the run's checkpoints."""
    step: int
    generation: int
    """The number of the group."""
    token: str
    """Of the group; no other one of its number has it."""
    rank: int
    ranks: int

    @property
    def path(self) -> Path:
        """The directory that the parts are gathered in."""
        name = f"{TEMPORARY}{name_of(self.step)}-{self.generation}-{self.token}"
        return self.directory / name

    def write(self, blocks: Sequence[Block], data: memoryview) -> None:
        """Write this process' part.

        Raises:
            GivenUpError: the first process waits for it no longer.
            OSError: it could not be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        part = self.path / _part(self.rank)
        unfinished = part.with_suffix(_UNFINISHED)
        try:
            write_part(unfinished, blocks, data)
            unfinished.rename(part)
        except FileNotFoundError as error:
            if self.directory.is_dir() and not self.path.exists():
                raise GivenUpError("the first process of the group did not wait") from error
            raise

    def report(self, error: CheckpointError | DivergedError) -> None:
        """Tell the first process, as well as it goes, that this part will not come."""
        note = (self.path / _part(self.rank)).with_suffix(_FAILED)
        unfinished = note.with_suffix(_UNFINISHED)
        content = json.dumps({"diverged": isinstance(error, DivergedError), "why": error.message})
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            unfinished.unlink(missing_ok=True)  # what there is of the part: room for the note
            unfinished.write_text(content)
            unfinished.rename(note)
        except OSError:
            with suppress(OSError):  # a full disk may have room for a name
                note.touch()

    def wait_for_parts(self, *, timeout_s: float, give_up: threading.Event) -> None:
        """Wait until every process' part is there.

        Raises:
            GivenUpError: some did not come in time, or before `give_up` was set; one could neither
                write its part nor say so, and saves another step by now; or a newer group has
                removed what was there.
            CheckpointError, DivergedError: a process could not write its part.
            OSError: the directory cannot be read.
        """
        deadline = time.monotonic() + timeout_s
        expected = {_part(rank): rank for rank in range(self.ranks)}
        while True:
            is_last_look = give_up.is_set() or time.monotonic() > deadline
            # First: who has come to a later save had written this part by then, if it ever does.
            later = self._parts_of_later_saves()
            with self._given_up_if_removed():
                names = {path.name for path in self.path.iterdir()}
            self._raise_reported(names)
            missing = [rank for name, rank in expected.items() if name not in names]
            if not missing:
                return
            gone = [rank for rank in missing if _part(rank) in later]
            if gone or is_last_look:
                raise GivenUpError(_describe(gone or missing))
            give_up.wait(_POLL_S)

    def publish(self, counters: Counters, model: TrainedModel, *, tokenizer: str | None) -> None:
        """Describe what was gathered, and give it the name of a checkpoint.

        Raises:
            GivenUpError: a newer group has removed what was there.
            OSError, SafetensorError, ValueError, KeyError: a part is damaged, or what is there
                cannot be written.
        """
        files = [_part(rank) for rank in range(self.ranks)]
        with self._given_up_if_removed():
            tensors = index({name: read_blocks(self.path / name) for name in files})
            write_description(
                self.path,
                counters=counters,
                shape=model.shape,
                files=files,
                tensors=tensors,
                tokenizer=tokenizer,
                lineage=model.lineage,
            )
            self._rename()

    def discard(self) -> None:
        """Remove what was gathered; a process that still writes its part finds it given up."""
        shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def _given_up_if_removed(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if self.directory.is_dir() and not self.path.exists():
                raise GivenUpError("a newer group has removed it") from error
            raise

    def _rename(self) -> None:
        final = self.directory / name_of(self.step)
        while True:
            try:
                self.path.rename(final)
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
                if read(final) is not None:  # another group of the run was faster
                    self.discard()
                    return
                remove(final)
            else:
                sync_directory(self.directory)
                return

    def _parts_of_later_saves(self) -> frozenset[str]:
        """Return the names of the parts that the group's processes have begun of later steps."""
        found: set[str] = set()
        for path in self.directory.glob(f"{TEMPORARY}*-{self.generation}-{self.token}"):
            if path.name > self.path.name:
                with suppress(FileNotFoundError):  # a newer group removes it
                    found.update(file.name.partition(".")[0] for file in path.iterdir())
        return frozenset(f"{name}{_PART}" for name in found)

    def _raise_reported(self, names: set[str]) -> None:
        for name in sorted(name for name in names if name.endswith(_FAILED)):
            is_diverged, why = _read_note(self.path / name)
            if is_diverged:
                raise DivergedError(why)
            raise CheckpointError(
                f"the checkpoint of step {self.step} below {str(self.directory)!r} is not "
                f"complete, as another process could not write {name.removesuffix(_FAILED)}: {why}"
            )


def _part(rank: int) -> str:
    return f"part-{rank:05d}{_PART}"


def _read_note(path: Path) -> tuple[bool, str]:
    try:
        note = json.loads(path.read_text())
    except (OSError, ValueError):
        return False, "it left no reason; its own log has it"
    return note["diverged"], note["why"]


def _describe(missing: Sequence[int]) -> str:
    named = ", ".join(map(str, missing[:8]))
    return f"ranks {named}{' and more' if len(missing) > 8 else ''} did not write their parts"  # noqa: PLR2004

"""The names of checkpoints in a run's directory, and removing them so that no torn one is seen."""

from __future__ import annotations

import os
import re
import shutil
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from modelscaling_trainer.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEMPORARY = ".writing-"
"""How names begin of what is not a checkpoint yet, or not any more."""
_NAME = re.compile(r"step-(\d{8,})")
_ABANDONED_AFTER_S = 3600.0
"""A temporary directory that nobody has written to for so long is of a process that died."""


def name_of(step: int) -> str:
    """Return the name of a step's checkpoint."""
    return f"step-{step:08d}"


def steps_in(directory: Path) -> list[int]:
    """Return the steps that something has the name of a checkpoint for, in no order.

    Raises:
        OSError: the directory is there, and cannot be read.
    """
    try:
        names = [path.name for path in directory.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    matches = (_NAME.fullmatch(name) for name in names)
    return [int(match[1]) for match in matches if match]


@contextmanager
def being_read(directory: Path) -> Iterator[None]:
    """Say of whatever keeps a directory from being read that it is the volume's fault.

    Raises:
        CheckpointError: something does.
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"the checkpoints in {str(directory)!r} cannot be read: {error}; look after the volume"
        ) from error


def check_readable(directory: Path) -> None:
    """Refuse a directory whose checkpoints nobody can look for. One that is full, or cannot be
    written, will do: a run trains on without saving.

    Raises:
        CheckpointError: it cannot be read.
    """
    with being_read(directory):
        steps_in(directory)


def remove(path: Path) -> None:
    """Remove a checkpoint so that a crash in the middle leaves nothing that looks like one; does
    nothing where another process has removed it.
    """
    condemned = path.with_name(f"{TEMPORARY}{path.name}-removed-{time.time_ns()}")
    with suppress(FileNotFoundError):
        path.rename(condemned)
    shutil.rmtree(condemned, ignore_errors=True)


def remove_abandoned(directory: Path) -> None:
    """Remove what processes that died have left."""
    for path in directory.glob(f"{TEMPORARY}*"):
        if _is_abandoned(path):
            shutil.rmtree(path, ignore_errors=True)


def sync_directory(path: Path) -> None:
    """Return when the names in a directory are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_abandoned(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED_AFTER_S
    except OSError:
        return False  # somebody else has removed or renamed it

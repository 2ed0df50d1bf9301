"""Checkpoints on disk: their names, what makes one valid, finding, loading, publishing, pruning.

A checkpoint is a directory `step-00000200` with tensors as torch.distributed.checkpoint writes
them, under names that know no mesh, and `checkpoint.json`, which says what they are. It is
written under another name and renamed when every byte is on the disk, so whatever has the name
was whole once. A file that was lost or cut short since shows in the sizes that the description
lists; such a checkpoint is skipped with a line in the log.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from modelscaling_trainer.errors import CheckpointError, ConfigurationError
from modelscaling_trainer.state import NOTHING, Counters

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from torch import Tensor
    from torch.distributed.checkpoint.metadata import Metadata

    from modelscaling.shape import ModelShape

_log = logging.getLogger(__name__)

FORMAT = 1
"""The version of the format; a newer one is refused."""
_DESCRIPTION = "checkpoint.json"
_NAME = re.compile(r"step-(\d{8,})")
_TEMPORARY = ".writing-"
_ABANDONED_AFTER_S = 3600.0
"""A temporary directory that nobody has written to for so long is of a process that died."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A valid checkpoint."""

    path: Path
    counters: Counters
    model: dict[str, Any]
    """The shape of its model, by field."""

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Fill tensors in place.

        Raises:
            CheckpointError: its files are damaged; the tensors may be half filled.
        """
        # Slow to import (it brings sympy); the writer does it while the first steps are taken.
        from torch.distributed.checkpoint.api import CheckpointException  # noqa: PLC0415
        from torch.distributed.checkpoint.state_dict_loader import load  # noqa: PLC0415

        _expect_single_process()
        try:
            load(dict(tensors), checkpoint_id=self.path, no_dist=True)
        except (Exception, CheckpointException) as error:  # which is a BaseException
            raise CheckpointError(f"checkpoint {self.path} is damaged: {error}") from error


def find_newest(directory: Path, *, except_steps: Collection[int] = ()) -> Checkpoint | None:
    """Return the newest valid checkpoint; those that are not are named in the log.

    Raises:
        ConfigurationError: it is of a newer format.
    """
    for step in sorted(_steps(directory), reverse=True):
        if step not in except_steps and (checkpoint := read(directory / _name(step))):
            return checkpoint
    return None


def find(directory: Path, step: int) -> Checkpoint | None:
    """Return the checkpoint of a step, or None where it is torn or not there."""
    return read(directory / _name(step))


def read(path: Path) -> Checkpoint | None:
    """Return the checkpoint at `path`, or None where it is torn.

    Raises:
        ConfigurationError: it is of a newer format.
    """
    try:
        description = json.loads((path / _DESCRIPTION).read_text())
        torn = [
            name
            for name, size in description["files"].items()
            if (path / name).stat().st_size != size
        ]
    except (OSError, ValueError, KeyError) as error:
        _log.warning("skipping the torn checkpoint %s: %s", path, error)
        return None
    if torn:
        _log.warning("skipping the torn checkpoint %s: %s are cut short", path, torn)
        return None
    _check_format(path, description)
    return Checkpoint(
        path=path, counters=Counters(**description["counters"]), model=description["model"]
    )


def check_shape(checkpoint: Checkpoint, shape: ModelShape) -> None:
    """Refuse a checkpoint of another model.

    Raises:
        ConfigurationError: a field of the shape differs.
    """
    declared = asdict(shape)
    differences = [
        f"{field}: {checkpoint.model.get(field)} in the checkpoint, {value} declared"
        for field, value in declared.items()
        if checkpoint.model.get(field) != value
    ]
    if differences:
        raise ConfigurationError(
            "CheckpointMismatch",
            f"checkpoint {checkpoint.path} is of another model ({'; '.join(differences)}); "
            f"declare the model that it was trained as, or give this run another directory",
        )


def write(
    directory: Path, tensors: dict[str, Tensor], counters: Counters, shape: ModelShape
) -> None:
    """Write a checkpoint and publish it under its step's name.

    Raises:
        CheckpointError: the directory cannot be written, or is full; what was there is whole.
    """
    from torch.distributed.checkpoint.api import CheckpointException  # noqa: PLC0415
    from torch.distributed.checkpoint.filesystem import FileSystemWriter  # noqa: PLC0415
    from torch.distributed.checkpoint.state_dict_saver import save  # noqa: PLC0415

    _expect_single_process()
    temporary = directory / f"{_TEMPORARY}{_name(counters.step)}-{os.getpid()}-{time.time_ns()}"
    try:
        temporary.mkdir(parents=True)
        writer = FileSystemWriter(temporary, thread_count=2)
        metadata = save(dict(tensors), storage_writer=writer, no_dist=True)
        _check_complete(metadata, tensors)
        _write_description(temporary, counters, shape)
        _publish(temporary, directory / _name(counters.step))
    except (Exception, CheckpointException) as error:  # which is a BaseException
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"could not write a checkpoint below {str(directory)!r}: {_cause(error)}; those "
            f"before it are whole; make room on the volume, or make it writable"
        ) from error


def prune(directory: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` valid checkpoints, and what a dead writer left."""
    valid = [step for step in _steps(directory) if read(directory / _name(step)) is not None]
    for step in sorted(valid)[:-keep]:
        _remove(directory / _name(step))
    for path in directory.glob(f"{_TEMPORARY}*"):
        if _is_abandoned(path):
            shutil.rmtree(path, ignore_errors=True)


def _check_complete(metadata: Metadata, tensors: dict[str, Tensor]) -> None:
    """Refuse what lacks a tensor: torch loses the error of all but one of its writer threads."""
    written = {index.fqn for index in metadata.storage_data or {}}
    lost = tensors.keys() - written
    if lost:
        raise OSError(f"{len(lost)} of {len(tensors)} tensors were not written")


def _expect_single_process() -> None:
    """Silence torch's guess that a save without collectives may not be meant."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)


def _cause(error: BaseException) -> str:
    """Return why writing failed; torch hides it in a report for each rank."""
    failures = getattr(error, "failures", {})
    return "; ".join(str(cause) for cause, _ in failures.values()) or str(error)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _steps(directory: Path) -> list[int]:
    if not directory.is_dir():
        return []
    matches = (_NAME.fullmatch(path.name) for path in directory.iterdir())
    return [int(match[1]) for match in matches if match]


def _check_format(path: Path, description: dict[str, Any]) -> None:
    if description["format"] > FORMAT:
        raise ConfigurationError(
            "CheckpointTooNew",
            f"checkpoint {path} has format {description['format']}, and this version reads up to "
            f"{FORMAT}; use the version that wrote it, or a newer one",
        )


def _write_description(path: Path, counters: Counters, shape: ModelShape) -> None:
    description = {
        "format": FORMAT,
        "counters": asdict(counters),
        "model": asdict(shape),
        "files": {file.name: file.stat().st_size for file in sorted(path.iterdir())},
    }
    with (path / _DESCRIPTION).open("w") as file:
        json.dump(description, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    _sync_directory(path)


def _publish(temporary: Path, final: Path) -> None:
    if final.exists():
        if read(final) is not None:  # another process of the run was faster
            shutil.rmtree(temporary)
            return
        _remove(final)
    temporary.rename(final)
    _sync_directory(final.parent)


def _remove(path: Path) -> None:
    """Remove a checkpoint so that a crash in the middle leaves nothing that looks like one."""
    condemned = path.with_name(f"{_TEMPORARY}{path.name}-removed-{time.time_ns()}")
    path.rename(condemned)
    shutil.rmtree(condemned, ignore_errors=True)


def _is_abandoned(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED_AFTER_S
    except OSError:
        return False  # somebody else has removed or renamed it


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def step_of(checkpoint: Checkpoint | None) -> int:
    """Return a checkpoint's step, or NOTHING."""
    return NOTHING if checkpoint is None else checkpoint.counters.step

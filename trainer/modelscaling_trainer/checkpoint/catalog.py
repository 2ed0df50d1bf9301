"""Checkpoints on disk: what makes one valid, finding, loading and pruning them.

A checkpoint is a directory `step-00000200` with a file of tensors for each process that wrote it,
and `checkpoint.json`, which says what they are and where each block of each tensor is. Nothing in
it knows the mesh: whoever holds a region of a tensor reads the blocks that it overlaps. It is
written under another name and renamed when every byte is on the disk, so whatever has the name
was whole once. A file that was lost or cut short since shows in the sizes that the description
lists; such a checkpoint is skipped with a line in the log.
"""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError, safe_open

from modelscaling.growth.lineage import NO_LINEAGE, Lineage, lineage_from_json
from modelscaling.growth.trained_model import TrainedModel
from modelscaling.shape import ModelShape
from modelscaling_trainer.checkpoint.directory import (
    name_of,
    remove,
    remove_abandoned,
    steps_in,
    sync_directory,
)
from modelscaling_trainer.checkpoint.index import from_json, to_json
from modelscaling_trainer.checkpoint.part import dtype_name
from modelscaling_trainer.errors import CheckpointError, ConfigurationError
from modelscaling_trainer.state import NOTHING, Counters

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from modelscaling.layout import Region
    from modelscaling.validation_history import Validation
    from modelscaling_trainer.checkpoint.index import Stored, StoredTensor
    from modelscaling_trainer.shard import Shard

_log = logging.getLogger(__name__)

FORMAT = 3
"""The version of the format; a newer one is refused. Version 2 had no lineage and no history of
validations. What is read where it is there, and passed over by who does not know it, such as the
tokenizer, makes no new version."""
DESCRIPTION = "checkpoint.json"
"""The file that makes a directory a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A valid checkpoint."""

    path: Path
    counters: Counters
    model: dict[str, Any]
    """The shape of its model, by field."""
    tensors: Mapping[str, StoredTensor]
    lineage: Lineage = NO_LINEAGE
    """The models that its model was grown from."""
    tokenizer: str | None = None
    """The identity of the tokenizer that it was trained with; None where that is not known, or an
    older version did not write it."""

    @property
    def trained(self) -> TrainedModel:
        """What it is of.

        Raises:
            TypeError, ValueError: it is no shape.
        """
        return TrainedModel(shape=ModelShape.from_fields(self.model), lineage=self.lineage)

    def load(self, shards: Mapping[str, Shard]) -> None:
        """Fill tensors in place, by their names; reads no more than what they hold.

        Raises:
            CheckpointError: it is damaged, or lacks something of them; they may be half filled.
        """
        try:
            for file, reads in self._plan(shards).items():
                with safe_open(self.path / file, "pt") as part:
                    for read in reads:
                        _fill(part, read)
        except (OSError, SafetensorError, ValueError) as error:
            raise CheckpointError(f"checkpoint {self.path} is damaged: {error}") from error

    def _plan(self, shards: Mapping[str, Shard]) -> dict[str, list[_Read]]:
        """Return what to read of each file, so that each is opened once, one at a time."""
        plan: dict[str, list[_Read]] = defaultdict(list)
        for name, shard in shards.items():
            stored = self._stored(name, shard)
            found = 0
            for block in stored.blocks:
                overlap = block.region.intersect(shard.piece.region)
                if overlap is not None:
                    plan[block.file].append(_Read(name, shard, block, overlap))
                    found += overlap.elements
            if found != shard.piece.region.elements:
                raise ValueError(
                    f"it holds {found} of the {shard.piece.region.elements} elements of "
                    f"{name} from {shard.piece.region.offset}"
                )
        return plan

    def _stored(self, name: str, shard: Shard) -> StoredTensor:
        """Return where a tensor is; refuse one that is not what the shard is of."""
        if name not in self.tensors:
            raise ValueError(f"it lacks the tensor {name}")
        stored = self.tensors[name]
        expected = (dtype_name(shard.tensor.dtype), shard.piece.shape)
        if (stored.dtype, stored.shape) != expected:
            raise ValueError(f"{name} is {stored.dtype} {stored.shape}, expected {expected}")
        return stored


class _Read(NamedTuple):
    """A block of a file, and what of it goes into a shard."""

    name: str
    shard: Shard
    block: Stored
    overlap: Region


def _fill(part: safe_open, read: _Read) -> None:
    stored = part.get_slice(read.name)  # type: ignore[no-untyped-call]
    if tuple(stored.get_shape()) != read.block.region.size:
        raise ValueError(
            f"{read.block.file} holds {read.name} as {stored.get_shape()}, and the index says "
            f"{read.block.region.size}"
        )
    target = read.shard.tensor.detach()[read.overlap.within(read.shard.piece.region)]
    target.copy_(stored[read.overlap.within(read.block.region)])


def find_newest(directory: Path, *, except_steps: Collection[int] = ()) -> Checkpoint | None:
    """Return the newest valid checkpoint; those that are not are named in the log.

    Raises:
        ConfigurationError: it is of a newer format.
    """
    for step in sorted(steps_in(directory), reverse=True):
        if step not in except_steps and (checkpoint := read(directory / name_of(step))):
            return checkpoint
    return None


def find(directory: Path, step: int) -> Checkpoint | None:
    """Return the checkpoint of a step, or None where it is torn or not there."""
    return read(directory / name_of(step))


def find_at(path: Path) -> Checkpoint | None:
    """Return the checkpoint at a path, or the newest valid one of the run there.

    Raises:
        ConfigurationError: it is of a newer format.
    """
    return read(path) if is_checkpoint(path) else find_newest(path)


def is_checkpoint(path: Path) -> bool:
    """Whether a directory has what makes a checkpoint, torn or not."""
    return (path / DESCRIPTION).is_file()


def read(path: Path) -> Checkpoint | None:
    """Return the checkpoint at `path`, or None where it is torn.

    Raises:
        ConfigurationError: it is of a newer format.
    """
    try:
        description = json.loads((path / DESCRIPTION).read_text())
        _check_format(path, description["format"])
        _check_sizes(path, description["files"])
        return Checkpoint(
            path=path,
            counters=Counters.from_json(description["counters"]),
            model=description["model"],
            tensors=from_json(description["tensors"]),
            lineage=lineage_from_json(description.get("lineage", [])),
            tokenizer=description.get("tokenizer"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("skipping the torn checkpoint %s: %r", path, error)
        return None


def step_of(checkpoint: Checkpoint | None) -> int:
    """Return a checkpoint's step, or NOTHING."""
    return NOTHING if checkpoint is None else checkpoint.counters.step


def find_best(directory: Path) -> Validation | None:
    """Return the best validation of those that a valid checkpoint was written after."""
    return _best(_read_all(directory))


def prune(directory: Path, *, keep: int, keeps_best: bool = False) -> Validation | None:
    """Remove all but the newest `keep` valid checkpoints, and what a dead writer left. With
    `keeps_best` the best one stays too, and its validation is returned.
    """
    valid = _read_all(directory)
    best = _best(valid) if keeps_best else None
    for checkpoint in valid[:-keep]:
        if best is None or step_of(checkpoint) != best.step:
            remove(checkpoint.path)
    remove_abandoned(directory)
    return best


def _read_all(directory: Path) -> list[Checkpoint]:
    """Return the valid checkpoints, the newest last."""
    found = (read(directory / name_of(step)) for step in sorted(steps_in(directory)))
    return [checkpoint for checkpoint in found if checkpoint is not None]


def _best(checkpoints: Sequence[Checkpoint]) -> Validation | None:
    """Return the best validation of those whose state a checkpoint holds. What a checkpoint knows
    of the steps before it does not count: they may never have been saved. Nor do smaller models
    that the newest was grown from.
    """
    own = [
        best
        for checkpoint in checkpoints
        if checkpoint.lineage == checkpoints[-1].lineage
        and (best := checkpoint.counters.validations.best)
        and best.step == step_of(checkpoint)
    ]
    return min(own, key=lambda best: best.loss, default=None)


def write_description(
    path: Path,
    *,
    counters: Counters,
    shape: ModelShape,
    files: Sequence[str],
    tensors: Mapping[str, StoredTensor],
    tokenizer: str | None,
    lineage: Lineage = NO_LINEAGE,
) -> None:
    """Write what makes the files in a directory a checkpoint, and return when the names of all
    are on the disk.

    Raises:
        OSError: it cannot be written.
    """
    description = {
        "format": FORMAT,
        "counters": asdict(counters),
        "model": asdict(shape),
        "lineage": lineage.to_json(),
        "tokenizer": tokenizer,
        "files": {name: (path / name).stat().st_size for name in files},
        "tensors": to_json(tensors),
    }
    with (path / DESCRIPTION).open("w") as file:
        json.dump(description, file)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(path)


def _check_format(path: Path, version: int) -> None:
    if version > FORMAT:
        raise ConfigurationError(
            "CheckpointTooNew",
            f"checkpoint {path} has format {version}, and this version reads up to {FORMAT}; use "
            f"the version that wrote it, or a newer one",
        )


def _check_sizes(path: Path, files: Mapping[str, int]) -> None:
    torn = [name for name, size in files.items() if (path / name).stat().st_size != size]
    if torn:
        raise ValueError(f"{torn} are cut short")

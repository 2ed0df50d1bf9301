"""What `modelscaling grow` makes larger: a checkpoint, or a directory of Hugging Face's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from modelscaling_trainer.checkpoint import catalog
from modelscaling_trainer.checkpoint.directory import name_of
from modelscaling_trainer.checkpoint.weights import CheckpointWeights
from modelscaling_trainer.errors import CheckpointError, ConfigurationError
from modelscaling_trainer.growth.checkpoint import new_directory, write_grown
from modelscaling_trainer.growth.weights import GrownWeights
from modelscaling_trainer.hugging_face.directory import CONFIG, HuggingFaceDirectory
from modelscaling_trainer.hugging_face.writing import write_directory

if TYPE_CHECKING:
    from pathlib import Path

    from modelscaling.growth.mode import GrowthMode
    from modelscaling.growth.plan import GrowthPlan
    from modelscaling_trainer.checkpoint.catalog import Checkpoint
    from modelscaling_trainer.weight_source import WeightSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A grown model on the disk."""

    path: Path
    weights: WeightSource


class Original(Protocol):
    """A model on the disk, which can be written larger as the same sort of thing."""

    @property
    def weights(self) -> WeightSource:
        """Its shape, and its weights."""
        ...

    @property
    def tokenizer(self) -> Path | None:
        """The tokenizer.json that is beside it."""
        ...

    def write(self, plan: GrowthPlan, target: Path, *, mode: GrowthMode, seed: int) -> Written:
        """Write what it grows to at a path where nothing is; nothing is there when this fails.

        Raises:
            ConfigurationError: the grown model cannot be written as this sort of thing.
            CheckpointError: the original is damaged.
            OSError: it cannot be written.
        """
        ...


def open_original(path: Path) -> Original:
    """Return the model in a directory of Hugging Face's, the checkpoint at a path, or the newest of
    the run there.

    Raises:
        ConfigurationError: there is none.
    """
    if (path / CONFIG).is_file():
        return _Directory(HuggingFaceDirectory(path))
    found = catalog.find_at(path)
    if found is None:
        raise ConfigurationError(
            "NoModel",
            f"IN: {str(path)!r} is no checkpoint, has no whole one below it, and has no {CONFIG}; "
            f"give a checkpoint, the --output of a run, or a directory that transformers saved",
        )
    return _Checkpoint(found, is_of_run=found.path != path)


class _Directory:
    """Its weights stay of the type that they are stored as, or become float32 where that is float64
    or differs, and its tokenizer's files stay beside it.
    """

    def __init__(self, directory: HuggingFaceDirectory) -> None:
        self.weights = directory

    @property
    def tokenizer(self) -> Path | None:
        return self.weights.tokenizer

    def write(self, plan: GrowthPlan, target: Path, *, mode: GrowthMode, seed: int) -> Written:
        del mode  # it is kept in a checkpoint's lineage, which such a directory has none of
        write_directory(
            GrownWeights(self.weights, plan, seed=seed),
            target,
            companions=self.weights.companions,
            token_ids=self.weights.token_ids,
            dtype=self.weights.dtype,
        )
        return Written(path=target, weights=HuggingFaceDirectory(target))


class _Checkpoint:
    """It grows with its optimizer's state; the newest of a run becomes a run of one checkpoint."""

    tokenizer: Path | None = None

    def __init__(self, checkpoint: Checkpoint, *, is_of_run: bool) -> None:
        self._checkpoint = checkpoint
        self._is_of_run = is_of_run
        self.weights = CheckpointWeights(checkpoint)

    def write(self, plan: GrowthPlan, target: Path, *, mode: GrowthMode, seed: int) -> Written:
        counters = self._checkpoint.counters
        lineage = self._checkpoint.lineage.grown(self.weights.shape, step=counters.step, mode=mode)
        below = name_of(counters.step) if self._is_of_run else ""
        with new_directory(target) as unfinished:
            (unfinished / below).mkdir(exist_ok=True)
            write_grown(self._checkpoint, plan, unfinished / below, lineage=lineage, seed=seed)
        written = catalog.read(target / below)
        if written is None:
            raise CheckpointError(
                f"{str(target / below)!r} was written, and cannot be read; look after the disk"
            )
        return Written(path=target / below, weights=CheckpointWeights(written))

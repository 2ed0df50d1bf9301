"""The first weights of a run from a model that is trained already (`spec.model.initFrom`): as they
are, or grown to the run's shape on the way.

Each process reads the blocks that its own part is made from, and no more. Only weights are taken:
moments, steps and the place in the data begin at 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from modelscaling.configuration import WeightsFormat
from modelscaling.growth.mode import GrowthMode
from modelscaling.growth.plan import GrowthPlan, UnreachableShapeError, plan_growth
from modelscaling.layout import is_adapter
from modelscaling_trainer.checkpoint import catalog
from modelscaling_trainer.checkpoint.weights import CheckpointWeights
from modelscaling_trainer.data.tokenizer import ByteTokenizer, open_tokenizer
from modelscaling_trainer.errors import CheckpointError, ConfigurationError
from modelscaling_trainer.growth.weights import GrownWeights
from modelscaling_trainer.hugging_face.directory import HuggingFaceDirectory
from modelscaling_trainer.merged_weights import MergedWeights
from modelscaling_trainer.model.initial_weights import initial_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelscaling.api.data import BuiltInTokenizer, TokenizerFile
    from modelscaling.configuration import RunConfiguration
    from modelscaling.shape import ModelShape
    from modelscaling_trainer.checkpoint.catalog import Checkpoint
    from modelscaling_trainer.shard import Shard
    from modelscaling_trainer.weight_source import WeightSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Weights that a run begins with."""

    source: WeightSource
    plan: GrowthPlan
    """From the source's shape to the run's without its adapters."""

    @property
    def norm_epsilon(self) -> float:
        """That of the norms of a model which computes what the source does."""
        return self.plan.shape.norm_epsilon

    def fill(self, weights: Mapping[str, Shard], *, seed: int) -> None:
        """Fill shards of the run's weights; what growth and adapters draw is a function of the
        seed.

        Raises:
            CheckpointError: the source is damaged; they may be half filled.
        """
        grown = GrownWeights(self.source, self.plan, seed=seed)
        for name, shard in weights.items():
            if is_adapter(name):
                layers = self.plan.shape.layers
                values = initial_values(name, shard.piece, seed=seed, layers=layers)
                shard.tensor.copy_(values)
            else:
                grown.fill(name, shard)


def open_transfer(configuration: RunConfiguration) -> Transfer | None:
    """Return the weights that a run begins with; None where they are drawn.

    Raises:
        ConfigurationError: there are none, they are of a newer format, or they are of a model that
            the run's cannot begin with, or of another tokenizer.
    """
    if configuration.init_from is None:
        return None
    path = Path(configuration.init_from.path)
    match configuration.init_from.format:
        case WeightsFormat.HUGGING_FACE:
            directory = HuggingFaceDirectory(path)
            directory.check_tokenizer(open_tokenizer(configuration.data.tokenizer))
            source: WeightSource = directory
        case WeightsFormat.CHECKPOINT:
            checkpoint = _find_checkpoint(path)
            _check_tokenizer(checkpoint, configuration.data.tokenizer)
            source = MergedWeights(CheckpointWeights(checkpoint))
    # Adapters are not transferred but begin anew.
    declared = replace(configuration.model, lora=None)
    return Transfer(source=source, plan=_plan(path, source.shape, declared))


def _find_checkpoint(path: Path) -> Checkpoint:
    try:
        found = catalog.find_at(path)
    except OSError as error:
        raise CheckpointError(
            f"{str(path)!r}, which spec.model.initFrom names, cannot be read: {error}; look after "
            f"the volume"
        ) from error
    if found is None:
        raise ConfigurationError(
            "NoCheckpoint",
            f"spec.model.initFrom names {str(path)!r}, which is no checkpoint, and there is no "
            f"whole one below it; give the path, inside the pod, of a checkpoint or of a run's "
            f"directory",
        )
    return found


def _check_tokenizer(checkpoint: Checkpoint, setting: BuiltInTokenizer | TokenizerFile) -> None:
    """Refuse a run whose token ids mean something else than the checkpoint's."""
    if checkpoint.tokenizer is None:
        return
    tokenizer = open_tokenizer(setting).identity
    if tokenizer != checkpoint.tokenizer:
        raise ConfigurationError(
            "OtherTokenizer",
            f"{str(checkpoint.path)!r}, which spec.model.initFrom names, was trained with "
            f"{_described(checkpoint.tokenizer)}, and this run has {_described(tokenizer)}; set "
            f"data.tokenizer to the former or, where this one only adds ids to it, begin with what "
            f"`modelscaling export --tokenizer` makes of both",
        )


def _described(tokenizer: str) -> str:
    """Return how a user tells the tokenizer of an identity."""
    if tokenizer == ByteTokenizer.identity:
        return "the tokenizer Byte"
    return f"the tokenizer.json of which `b2sum -l 128` is {tokenizer}"


def _plan(path: Path, shape: ModelShape, declared: ModelShape) -> GrowthPlan:
    """Return how a model becomes the declared one; refuse what would compute something else."""
    # Shorter samples make no other model.
    trained = replace(shape, context_length=min(shape.context_length, declared.context_length))
    try:
        return plan_growth(trained, declared, GrowthMode.PRESERVE)
    except UnreachableShapeError as error:
        raise ConfigurationError(
            "OtherModel",
            f"the model that spec.model.initFrom names, {str(path)!r}, cannot become the one of "
            f"spec.model ({error}); declare its shape or a larger one, with the preset of its "
            f"family, which brings what has no field of its own",
        ) from error

"""The resolved run: every number that the trainer needs, with nothing left to default or derive.

`modelscaling.resolve` makes it from a ModelScaling's spec. It is the only thing about the spec
that a pod ever sees, so the same run on a laptop and on a cluster is the same value.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from modelscaling.api.data import BuiltInTokenizer, TokenizerFile
from modelscaling.api.training import ActivationCheckpointing, CompileMode, Precision, ScheduleShape
from modelscaling.growth.mode import GrowthMode
from modelscaling.shape import ModelShape


class Message(BaseModel):
    """The base of what is written as JSON between processes; unknown fields of a newer version
    are ignored.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")


class WeightsFormat(StrEnum):
    """How weights are stored that a run begins with."""

    HUGGING_FACE = "HuggingFace"
    CHECKPOINT = "Checkpoint"


class InitFromConfiguration(Message):
    """The weights that a run begins with."""

    format: WeightsFormat
    path: str
    """A directory."""


class DataConfiguration(Message):
    """What is read, and as which tokens."""

    path: str
    """Glob of the text files."""
    tokenizer: BuiltInTokenizer | TokenizerFile
    validation_fraction: Annotated[float, Field(ge=0, le=0.5)]


class LearningRateFactor(Message):
    """What the learning rate of some weights is multiplied by."""

    weights: str
    """Pattern of their names."""
    factor: float
    layer_decay: float
    """A further factor for each layer between a weight and the output."""


class OptimizerConfiguration(Message):
    """AdamW and the course of its learning rate; steps count from 0."""

    learning_rate: float
    schedule: ScheduleShape
    warmup_steps: int
    decay_steps: int
    """Steps of the final fall; for Cosine all steps after the warm-up."""
    minimum_learning_rate: float
    weight_decay: float
    beta1: float
    beta2: float
    epsilon: float
    gradient_clip_norm: float
    """0 where the gradient is not clipped."""
    freeze: tuple[str, ...] = ()
    """Patterns of names of weights that stay as they are."""
    rewarmup_steps: int = 0
    """Steps after a growth in which the rate rises again from 0."""
    learning_rate_factors: tuple[LearningRateFactor, ...] = ()
    """All that match a weight are multiplied."""


class EarlyStoppingConfiguration(Message):
    """When a run that does not improve ends."""

    patience: int
    """Validations without improvement after which it does."""
    min_delta: float
    """By how much a loss is lower that is an improvement, nats a token."""


class TrainingConfiguration(Message):
    """How long and in which portions."""

    total_steps: int
    global_batch_size: int
    """Samples in one step, over all processes."""
    micro_batch_size: int | None
    """Samples that a process computes at once; None lets the trainer choose."""
    precision: Precision
    seed: int
    compile: CompileMode
    activation_checkpointing: ActivationCheckpointing
    validate_every_steps: int
    """0 where the validation loss is never measured."""
    early_stopping: EarlyStoppingConfiguration | None = None
    """None where the run does all its steps."""


class CheckpointConfiguration(Message):
    """How often the run is saved; where is the agent's to know."""

    every_steps: int
    keep: int


class RunConfiguration(Message):
    """One run, ready to be trained."""

    schema_version: Literal[1] = 1
    model: ModelShape
    growth: GrowthMode | None = GrowthMode.PRESERVE
    """How a state of a smaller model becomes one of this; None where that is refused."""
    growth_tolerance: float | None = None
    """By how much the validation loss may be higher after growth than before, nats a token; None
    where growth is never taken back for it."""
    data: DataConfiguration
    training: TrainingConfiguration
    optimizer: OptimizerConfiguration
    checkpoint: CheckpointConfiguration | None
    """None where the run keeps no checkpoints."""
    init_from: InitFromConfiguration | None = None
    """None where the first weights are drawn."""

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one global batch."""
        return self.training.global_batch_size * self.model.context_length

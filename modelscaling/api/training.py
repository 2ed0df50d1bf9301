"""`spec.training`: how long and with which optimizer settings."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from modelscaling.api.base import ApiModel, Count, Decimal, Quantity, Rule, quantity_rule


class Precision(StrEnum):
    """The number format of the matrix products."""

    FLOAT32 = "Float32"
    BFLOAT16 = "BFloat16"


class ScheduleShape(StrEnum):
    """How the learning rate falls after warm-up."""

    COSINE = "Cosine"
    WARMUP_STABLE_DECAY = "WarmupStableDecay"


class CompileMode(StrEnum):
    """When torch.compile is used."""

    AUTO = "Auto"
    ALWAYS = "Always"
    NEVER = "Never"


class ActivationCheckpointing(StrEnum):
    """What is computed again in the backward pass instead of being kept for it."""

    NONE = "None"
    SELECTIVE = "Selective"
    FULL = "Full"


class ScheduleSpec(ApiModel):
    """Schedule is the course of the learning rate: a linear warm-up to training.learningRate,
    then a fall to minimumFraction of it.
    """

    shape: ScheduleShape = ScheduleShape.COSINE
    """Shape is Cosine (falls from the end of the warm-up to the last step) or WarmupStableDecay
    (stays, then falls linearly over the last decayFraction of the steps)."""

    warmup_steps: Annotated[Count, Field(ge=0, le=1_000_000)] = 20
    """WarmupSteps is the number of steps in which the rate rises from 0, linearly."""

    decay_fraction: Decimal = "0.2"
    """DecayFraction is the part of all steps, from 0 to 1, in which WarmupStableDecay falls."""

    minimum_fraction: Decimal = "0.1"
    """MinimumFraction is the rate at the last step, as a fraction of learningRate, from 0 to 1."""

    rules = (
        Rule(
            expression="double(self.decayFraction) <= 1.0",
            message=("decayFraction={decayFraction} is above 1; it is a part of all steps"),
            field="decayFraction",
        ),
        Rule(
            expression="double(self.minimumFraction) <= 1.0",
            message=("minimumFraction={minimumFraction} is above 1; it is a part of learningRate"),
            field="minimumFraction",
        ),
    )


class LearningRateFactorSpec(ApiModel):
    """LearningRateFactor is what the learning rate of some weights is multiplied by."""

    weights: Annotated[str, Field(min_length=1, max_length=253)] = "*"
    """Weights is a pattern of names of weights, as in freeze."""

    factor: Decimal | None = None
    """Factor is what learningRate is multiplied by for them, above 0."""

    layer_decay: Decimal | None = None
    """LayerDecay is a factor for each layer between a weight and the output, above 0 and at most 1:
    of a model with L layers, the last has a rate of layerDecay × learningRate, the first of
    layerDecay^L, the input table of layerDecay^(L+1), also where it is the output head too; the
    last norm and an output head of its own have the whole rate."""

    rules = (
        Rule(
            expression="has(self.factor) || has(self.layerDecay)",
            message=(
                "weights={weights} has neither factor nor layerDecay, so its rate would be as it "
                "is; give one"
            ),
            field="weights",
        ),
        Rule(
            expression="!has(self.factor) || double(self.factor) > 0.0",
            message=(
                "factor={factor} must be above 0; put weights that are to stay as they are into "
                "training.freeze"
            ),
            field="factor",
        ),
        Rule(
            expression=(
                "!has(self.layerDecay) || "
                "(double(self.layerDecay) > 0.0 && double(self.layerDecay) <= 1.0)"
            ),
            message='layerDecay={layerDecay} must be above 0 and at most 1, such as "0.9"',
            field="layerDecay",
        ),
    )


class EarlyStoppingSpec(ApiModel):
    """EarlyStopping ends the run as Complete where the validation loss does not improve any more.

    The checkpoint of the best validation stays, whatever checkpoint.keep is; one is written at each
    new best.
    """

    patience: Annotated[Count, Field(ge=1, le=1000)]
    """Patience is how many validations in a row may pass without an improvement before the run
    ends; validateEverySteps is how far they lie apart."""

    min_delta: Decimal = "0"
    """MinDelta is by how much, in nats a token, a validation loss must be below the best one to
    count as an improvement."""


class TrainingSpec(ApiModel):
    """Training is how long the model is trained and with which optimizer settings (AdamW)."""

    tokens: Quantity
    """Tokens is how many tokens the run trains on, as an integer or with the suffix k, M, B or T.
    The number of steps is tokens / (globalBatchSize × contextLength), rounded up."""

    global_batch_size: Annotated[Count, Field(ge=1, le=1_048_576)]
    """GlobalBatchSize is the number of samples in one optimizer step, over all processes. It does
    not change with the number of replicas, and is divisible by the data-parallel size."""

    micro_batch_size: Annotated[Count, Field(ge=1, le=65536)] | None = None
    """MicroBatchSize is the number of samples that a process computes at once; the rest of its
    part of the global batch is accumulated. Less takes less memory; a pipeline needs at least as
    many micro batches as it has stages. Defaults to the process' whole part where that is at most
    16384 tokens, else to the largest divisor that is; with a pipeline, to one that leaves two
    micro batches for each stage where there is one."""

    learning_rate: Decimal = "3e-4"
    """LearningRate is the peak learning rate."""

    learning_rate_factors: Annotated[
        tuple[LearningRateFactorSpec, ...],
        Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """LearningRateFactors is what learningRate is multiplied by for some weights: layer-wise
    learning rates. A weight has the product of all that match it; weightDecay falls with its rate,
    as AdamW multiplies the two."""

    schedule: ScheduleSpec = ScheduleSpec()
    """Schedule is the course of the learning rate."""

    weight_decay: Decimal = "0.1"
    """WeightDecay is AdamW's decoupled decay; it applies to matrices, not to norms."""

    beta1: Decimal = "0.9"
    """Beta1 is the decay of AdamW's first moment, below 1."""

    beta2: Decimal = "0.95"
    """Beta2 is the decay of AdamW's second moment, below 1."""

    epsilon: Decimal = "1e-8"
    """Epsilon is added to AdamW's denominator."""

    gradient_clip_norm: Decimal = "1.0"
    """GradientClipNorm is the largest norm of the gradient over the full model; a larger gradient
    is scaled down to it. 0 turns clipping off."""

    precision: Precision = Precision.BFLOAT16
    """Precision is the number format of the matrix products: BFloat16 (with master weights in
    Float32) or Float32. A CPU without bfloat16 products computes in Float32 either way, as
    emulating them would be many times slower."""

    seed: Annotated[Count, Field(ge=0, le=2**31 - 1)] = 0
    """Seed fixes the initial weights and the order of the samples."""

    compile: CompileMode = CompileMode.AUTO
    """Compile says when torch.compile is used: Auto (where the run is long enough to earn back
    the compiler's time), Always or Never."""

    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.NONE
    """ActivationCheckpointing is what of a layer is computed again in the backward pass, to save
    memory: None, Selective (all but the matrix products, a few percent of time) or Full (the whole
    layer, about a third more time)."""

    validate_every_steps: Annotated[Count, Field(ge=0, le=1_000_000)] = 100
    """ValidateEverySteps is how often the validation loss is measured, and at the end; 0 never
    measures it."""

    freeze: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=253)], ...],
        Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """Freeze is patterns of names of weights that stay as they are, such as embed_tokens.* or
    layers.[0-3].*, where * stands for any text, ? for a character and [0-3] for one of a range.
    They have no part in gradientClipNorm and do not decay; a step takes as long as without. It
    cannot be changed."""

    early_stopping: EarlyStoppingSpec | None = None
    """EarlyStopping ends the run where the validation loss does not improve any more, and keeps the
    best checkpoint. Without it the run trains on all its tokens."""

    rules = (
        quantity_rule("tokens"),
        Rule(
            expression="double(self.learningRate) > 0.0",
            message='learningRate={learningRate} must be above 0, such as "3e-4"',
            field="learningRate",
        ),
        Rule(
            expression="double(self.beta1) < 1.0",
            message='beta1={beta1} must be below 1, such as "0.9"',
            field="beta1",
        ),
        Rule(
            expression="double(self.beta2) < 1.0",
            message='beta2={beta2} must be below 1, such as "0.95"',
            field="beta2",
        ),
        Rule(
            expression=(
                "!has(self.microBatchSize) || self.globalBatchSize % self.microBatchSize == 0"
            ),
            message=(
                "globalBatchSize={globalBatchSize} is not divisible by "
                "microBatchSize={microBatchSize}; set microBatchSize to a divisor"
            ),
            field="microBatchSize",
        ),
        Rule(
            expression="!has(self.earlyStopping) || self.validateEverySteps > 0",
            message=(
                "earlyStopping with patience={earlyStopping.patience} waits for validations, and "
                "validateEverySteps={validateEverySteps} never validates; set it to at least 1, or "
                "remove earlyStopping"
            ),
            field="earlyStopping",
        ),
    )

    immutable = (
        ("freeze", "create a new ModelScaling with model.initFrom to train on with other weights"),
    )

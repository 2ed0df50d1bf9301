"""From a spec to a run: derive every number, choose the mesh, refuse what cannot work.

This is the second half of validation: what CEL cannot say, because it needs a decision (the mesh)
or exact arithmetic.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from modelscaling.api.data import BuiltInTokenizer
from modelscaling.api.lora import LoraTarget
from modelscaling.api.model import GrowthPolicy
from modelscaling.api.modelscaling import TRAINER_CONTAINER
from modelscaling.api.parallelism import ParallelismStrategy
from modelscaling.api.training import ScheduleShape
from modelscaling.api.validation import InvalidSpecError, Problem
from modelscaling.byte_size import parse_byte_size
from modelscaling.configuration import (
    CheckpointConfiguration,
    DataConfiguration,
    EarlyStoppingConfiguration,
    InitFromConfiguration,
    LearningRateFactor,
    OptimizerConfiguration,
    RunConfiguration,
    TrainingConfiguration,
    WeightsFormat,
)
from modelscaling.freezing import freezing_problems, is_frozen
from modelscaling.growth.mode import GrowthMode
from modelscaling.layout import trained_weights, weights
from modelscaling.learning_rates import learning_rate_problems
from modelscaling.mesh import Mesh
from modelscaling.plan import Workload, check_mesh, choose_mesh
from modelscaling.pod_resources import trainer_resources
from modelscaling.preset import PRESETS
from modelscaling.protocol import SOURCE_MOUNT
from modelscaling.quantity import parse_quantity
from modelscaling.shape import Lora, ModelShape
from modelscaling.size import shape_of_size

if TYPE_CHECKING:
    from modelscaling.api.init_from import InitFromSpec
    from modelscaling.api.lora import LoraSpec
    from modelscaling.api.model import GrowthSpec, ModelSpec
    from modelscaling.api.modelscaling import ModelScalingSpec
    from modelscaling.api.parallelism import ParallelismSpec
    from modelscaling.api.training import TrainingSpec
    from modelscaling.plan import Plan

BYTE_VOCABULARY = 256
GROWTH_MODES = {
    GrowthPolicy.PRESERVE: GrowthMode.PRESERVE,
    GrowthPolicy.STACK: GrowthMode.STACK,
    GrowthPolicy.FORBID: None,
}
"""What growth.mode stands for; None for no growth at all."""
_NO_DIMENSIONS = {"preset", "parameters", "growth", "init_from", "lora"}
"""What spec.model says beside the shape's own numbers."""
_PRESERVE_TOLERANCE = 0.05
"""Nats a token: far above what rounding does, far below what a wrong step would."""
_CONTEXT_LENGTH = 1024
"""Tokens, where neither a preset nor the spec says."""


def resolve_shape(model: ModelSpec, *, default_vocabulary: int | None) -> ModelShape:
    """Return the model's shape: the preset's numbers, or those of the size that is wished for, or
    the spec's, or the documented defaults.

    Raises:
        InvalidSpecError: the numbers contradict each other.
    """
    base = PRESETS[model.preset] if model.preset else _base_shape(model, default_vocabulary)
    given = model.model_dump(exclude_none=True, exclude=_NO_DIMENSIONS)
    if "rope_theta" in given:
        given["rope_theta"] = float(given["rope_theta"])
    if model.heads is not None and model.kv_heads is None:
        given.setdefault("kv_heads", model.heads)
    if "head_size" not in given and ("heads" in given or "hidden_size" in given):
        given["head_size"] = given.get("hidden_size", base.hidden_size) // given.get(
            "heads", base.heads
        )
    try:
        return replace(base, **given, lora=None if model.lora is None else _lora(model.lora))
    except ValueError as error:
        raise InvalidSpecError([Problem(field="spec.model", message=str(error))]) from None


def _lora(spec: LoraSpec) -> Lora:
    targets = tuple(target.value for target in LoraTarget if target in spec.targets)
    return Lora(rank=spec.rank, alpha=float(spec.alpha), targets=targets)


def _base_shape(model: ModelSpec, default_vocabulary: int | None) -> ModelShape:
    """Return the shape of a spec without a preset, where CEL has made sure that a size is given."""
    vocabulary = model.vocabulary_size or default_vocabulary
    if vocabulary is None:
        raise InvalidSpecError(
            [
                Problem(
                    field="spec.model.vocabularySize",
                    message=(
                        "is required beside data.tokenizer.file; set it to the number of ids of "
                        "the tokenizer"
                    ),
                )
            ]
        )
    if model.parameters is not None:
        return _shape_of_size(model.parameters, model, vocabulary)
    assert model.layers and model.hidden_size and model.heads and model.feed_forward_size  # noqa: PT018
    return ModelShape(
        layers=model.layers,
        hidden_size=model.hidden_size,
        heads=model.heads,
        kv_heads=model.kv_heads or model.heads,
        head_size=model.head_size or model.hidden_size // model.heads,
        feed_forward_size=model.feed_forward_size,
        vocabulary_size=vocabulary,
        context_length=_CONTEXT_LENGTH,
        tied_embeddings=True,
    )


def _shape_of_size(wish: int | str, model: ModelSpec, vocabulary_size: int) -> ModelShape:
    try:
        return shape_of_size(
            parse_quantity(wish),
            vocabulary_size=vocabulary_size,
            tied_embeddings=model.tied_embeddings is not False,
            context_length=_CONTEXT_LENGTH,
        )
    except ValueError as error:
        problem = Problem(field="spec.model.parameters", message=str(error))
        raise InvalidSpecError([problem]) from None


def tokenizer_vocabulary(spec: ModelScalingSpec) -> int | None:
    """Return how many ids the tokenizer has; None where its file says."""
    return BYTE_VOCABULARY if spec.data.tokenizer is BuiltInTokenizer.BYTE else None


def resolve_configuration(
    spec: ModelScalingSpec, *, shape: ModelShape | None = None
) -> RunConfiguration:
    """Return the run that a spec stands for; with `shape` given, with that in place of the declared
    model.

    Raises:
        InvalidSpecError: the numbers contradict each other.
    """
    byte = spec.data.tokenizer is BuiltInTokenizer.BYTE
    if shape is None:
        shape = resolve_shape(spec.model, default_vocabulary=tokenizer_vocabulary(spec))
    if byte and shape.vocabulary_size < BYTE_VOCABULARY:
        raise InvalidSpecError(
            [
                Problem(
                    field="spec.model.vocabularySize",
                    message=(
                        f"{shape.vocabulary_size} is below {BYTE_VOCABULARY}, the ids of the Byte "
                        f"tokenizer; set it to at least {BYTE_VOCABULARY}"
                    ),
                )
            ]
        )
    _check_patterns(spec.training, shape)
    training = spec.training
    tokens_per_step = training.global_batch_size * shape.context_length
    total_steps = -(-training_tokens(training) // tokens_per_step)
    return RunConfiguration(
        model=shape,
        growth=GROWTH_MODES[spec.model.growth.mode],
        growth_tolerance=_growth_tolerance(spec.model.growth),
        data=DataConfiguration(
            path=spec.data.text.path,
            tokenizer=spec.data.tokenizer,
            validation_fraction=float(spec.data.validation_fraction),
        ),
        training=TrainingConfiguration(
            total_steps=total_steps,
            global_batch_size=training.global_batch_size,
            micro_batch_size=training.micro_batch_size,
            precision=training.precision,
            seed=training.seed,
            compile=training.compile,
            activation_checkpointing=training.activation_checkpointing,
            validate_every_steps=training.validate_every_steps,
            early_stopping=training.early_stopping
            and EarlyStoppingConfiguration(
                patience=training.early_stopping.patience,
                min_delta=float(training.early_stopping.min_delta),
            ),
        ),
        optimizer=_optimizer(spec, total_steps),
        checkpoint=spec.checkpoint
        and CheckpointConfiguration(
            every_steps=spec.checkpoint.every_steps, keep=spec.checkpoint.keep
        ),
        init_from=spec.model.init_from and _init_from(spec.model.init_from),
    )


def _growth_tolerance(growth: GrowthSpec) -> float | None:
    """Return the declared one, or the mode's own: what is not to preserve anything has none."""
    if growth.tolerance is not None:
        return float(growth.tolerance)
    return _PRESERVE_TOLERANCE if growth.mode is GrowthPolicy.PRESERVE else None


def _check_patterns(training: TrainingSpec, shape: ModelShape) -> None:
    names, trained = weights(shape), trained_weights(shape)
    problems = [
        Problem(field="spec.training.freeze", message=message)
        for message in freezing_problems(names, trained, training.freeze)
    ]
    patterns = [each.weights for each in training.learning_rate_factors]
    unfrozen = [name for name in trained if not is_frozen(name, training.freeze)]
    problems += [
        Problem(field=f"spec.training.learningRateFactors[{index}].weights", message=message)
        for index, message in learning_rate_problems(names, unfrozen, patterns)
    ]
    if problems:
        raise InvalidSpecError(problems)


def _init_from(spec: InitFromSpec) -> InitFromConfiguration:
    if spec.hugging_face is not None:
        return InitFromConfiguration(format=WeightsFormat.HUGGING_FACE, path=spec.hugging_face.path)
    # CEL has made sure that one is given.
    path = spec.checkpoint.path if spec.checkpoint is not None else SOURCE_MOUNT
    return InitFromConfiguration(format=WeightsFormat.CHECKPOINT, path=path)


def training_tokens(training: TrainingSpec) -> int:
    """Return how many tokens are trained on.

    Raises:
        InvalidSpecError: what is declared is no count.
    """
    try:
        return parse_quantity(training.tokens)
    except ValueError as error:
        raise InvalidSpecError(
            [Problem(field="spec.training.tokens", message=str(error))]
        ) from None


def _optimizer(spec: ModelScalingSpec, total_steps: int) -> OptimizerConfiguration:
    training, schedule = spec.training, spec.training.schedule
    rate = float(training.learning_rate)
    warmup_steps = min(schedule.warmup_steps, total_steps)
    decay_steps = (
        total_steps - warmup_steps
        if schedule.shape is ScheduleShape.COSINE
        else min(round(float(schedule.decay_fraction) * total_steps), total_steps - warmup_steps)
    )
    return OptimizerConfiguration(
        learning_rate=rate,
        schedule=schedule.shape,
        warmup_steps=warmup_steps,
        decay_steps=decay_steps,
        minimum_learning_rate=rate * float(schedule.minimum_fraction),
        weight_decay=float(training.weight_decay),
        beta1=float(training.beta1),
        beta2=float(training.beta2),
        epsilon=float(training.epsilon),
        gradient_clip_norm=float(training.gradient_clip_norm),
        freeze=training.freeze,
        rewarmup_steps=spec.model.growth.rewarmup_steps,
        learning_rate_factors=tuple(
            LearningRateFactor(
                weights=each.weights,
                factor=float(each.factor or 1),
                layer_decay=float(each.layer_decay or 1),
            )
            for each in training.learning_rate_factors
        ),
    )


def resolve_plan(
    spec: ModelScalingSpec, *, replicas: int | None = None, shape: ModelShape | None = None
) -> Plan:
    """Return the mesh for replicas × processesPerReplica processes, with its reason; with
    `replicas` given, for as many pods as an elastic run has of those that it wishes for; with
    `shape` given, for that in place of the declared model.

    Raises:
        InvalidSpecError: the declared mesh, or with Auto every mesh, is illegal or does not fit.
    """
    if replicas is not None:
        spec = spec.model_copy(update={"replicas": replicas})
    workload = _workload(spec, shape)
    if spec.parallelism.strategy is ParallelismStrategy.AUTO:
        return choose_mesh(workload)
    return check_mesh(workload, _declared_mesh(spec.parallelism, workload.processes))


def _declared_mesh(axes: ParallelismSpec, processes: int) -> Mesh:
    """Return the mesh of the axes that are given; one data axis takes what is left."""
    replicate, shard = axes.data_replicate, axes.data_shard
    left = processes // (axes.pipeline * axes.context * axes.tensor)
    if replicate is None:
        replicate = max(left // (shard or 1), 1)
    elif shard is None:
        shard = max(left // replicate, 1)
    return Mesh(
        pipeline=axes.pipeline,
        dataReplicate=replicate,
        dataShard=shard or 1,
        context=axes.context,
        tensor=axes.tensor,
        stagesPerProcess=axes.stages_per_process,
    )


def _workload(spec: ModelScalingSpec, shape: ModelShape | None) -> Workload:
    configuration = resolve_configuration(spec, shape=shape)
    axes, training = spec.parallelism, configuration.training
    resources = trainer_resources(spec.template)
    device_memory = parse_byte_size(axes.device_memory) if axes.device_memory else None
    field = "spec.parallelism.deviceMemory"
    if device_memory is None and resources.memory is not None and not resources.has_device:
        device_memory = resources.memory // spec.processes_per_replica
        field = f"spec.template (container {TRAINER_CONTAINER}, resources.limits.memory)"
    return Workload(
        shape=configuration.model,
        global_batch_size=training.global_batch_size,
        micro_batch_size=training.micro_batch_size,
        precision=training.precision,
        activation_checkpointing=training.activation_checkpointing,
        compile=training.compile,
        replicas=spec.replicas,
        processes_per_replica=spec.processes_per_replica,
        tensor_placement=axes.tensor_placement,
        computes_on_cpu=not resources.has_device,
        device_memory=device_memory,
        device_memory_field=field,
    )

"""From a spec to a run: derive every number, choose the mesh, refuse what cannot work.

This is the second half of validation: what CEL cannot say, because it needs a decision (the mesh)
or exact arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from modelscaling.api.data import BuiltInTokenizer
from modelscaling.api.training import ScheduleShape
from modelscaling.api.validation import InvalidSpecError, Problem
from modelscaling.configuration import (
    CheckpointConfiguration,
    DataConfiguration,
    OptimizerConfiguration,
    RunConfiguration,
    TrainingConfiguration,
)
from modelscaling.mesh import Mesh
from modelscaling.preset import PRESETS
from modelscaling.quantity import parse_quantity
from modelscaling.shape import ModelShape, divisors

if TYPE_CHECKING:
    from modelscaling.api.model import ModelSpec
    from modelscaling.api.modelscaling import ModelScalingSpec
    from modelscaling.api.training import TrainingSpec

BYTE_VOCABULARY = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The mesh that a run is given, and why."""

    mesh: Mesh
    reason: str


def resolve_shape(model: ModelSpec, *, default_vocabulary: int | None) -> ModelShape:
    """Return the model's shape: the preset's numbers, or the spec's, or the documented defaults.

    Raises:
        InvalidSpecError: the numbers contradict each other.
    """
    base = PRESETS[model.preset] if model.preset else _base_shape(model, default_vocabulary)
    given = model.model_dump(exclude_none=True, exclude={"preset"})
    if "rope_theta" in given:
        given["rope_theta"] = float(given["rope_theta"])
    if model.heads is not None and model.kv_heads is None:
        given.setdefault("kv_heads", model.heads)
    if "head_size" not in given and ("heads" in given or "hidden_size" in given):
        given["head_size"] = given.get("hidden_size", base.hidden_size) // given.get(
            "heads", base.heads
        )
    try:
        return replace(base, **given)
    except ValueError as error:
        raise InvalidSpecError([Problem(field="spec.model", message=str(error))]) from None


def _base_shape(model: ModelSpec, default_vocabulary: int | None) -> ModelShape:
    """Return the shape of a spec without a preset, where CEL has made sure of the size."""
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
    assert model.layers and model.hidden_size and model.heads and model.feed_forward_size  # noqa: PT018
    return ModelShape(
        layers=model.layers,
        hidden_size=model.hidden_size,
        heads=model.heads,
        kv_heads=model.kv_heads or model.heads,
        head_size=model.head_size or model.hidden_size // model.heads,
        feed_forward_size=model.feed_forward_size,
        vocabulary_size=vocabulary,
        context_length=1024,
        tied_embeddings=True,
    )


def resolve_configuration(spec: ModelScalingSpec) -> RunConfiguration:
    """Return the run that a spec stands for.

    Raises:
        InvalidSpecError: the numbers contradict each other.
    """
    byte = spec.data.tokenizer is BuiltInTokenizer.BYTE
    shape = resolve_shape(spec.model, default_vocabulary=BYTE_VOCABULARY if byte else None)
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
    training = spec.training
    tokens_per_step = training.global_batch_size * shape.context_length
    total_steps = -(-_tokens(training) // tokens_per_step)
    return RunConfiguration(
        model=shape,
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
        ),
        optimizer=_optimizer(training, total_steps),
        checkpoint=spec.checkpoint
        and CheckpointConfiguration(
            every_steps=spec.checkpoint.every_steps, keep=spec.checkpoint.keep
        ),
    )


def _tokens(training: TrainingSpec) -> int:
    try:
        return parse_quantity(training.tokens)
    except ValueError as error:
        raise InvalidSpecError(
            [Problem(field="spec.training.tokens", message=str(error))]
        ) from None


def _optimizer(training: TrainingSpec, total_steps: int) -> OptimizerConfiguration:
    schedule = training.schedule
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
    )


def resolve_plan(spec: ModelScalingSpec) -> Plan:
    """Return the mesh for replicas × processesPerReplica processes.

    Raises:
        InvalidSpecError: the global batch cannot be cut evenly.
    """
    processes = spec.replicas * spec.processes_per_replica
    mesh = Mesh(dataReplicate=max(processes, 1))
    batch = spec.training.global_batch_size
    if batch % mesh.data_parallel:
        nearest = _nearest(mesh.data_parallel, divisors(batch))
        raise InvalidSpecError(
            [
                Problem(
                    field="spec.training.globalBatchSize",
                    message=(
                        f"{batch} is not divisible by the data-parallel size {mesh.data_parallel} "
                        f"(replicas={spec.replicas} × processesPerReplica="
                        f"{spec.processes_per_replica}); change replicas × processesPerReplica to "
                        f"{nearest}, or globalBatchSize to a multiple of {mesh.data_parallel}"
                    ),
                )
            ]
        )
    micro = spec.training.micro_batch_size
    if micro is not None and (batch // mesh.data_parallel) % micro:
        raise InvalidSpecError(
            [
                Problem(
                    field="spec.training.microBatchSize",
                    message=(
                        f"{micro} does not divide a process' part of the global batch, "
                        f"{batch // mesh.data_parallel} samples; set it to one of "
                        f"{divisors(batch // mesh.data_parallel)}, or leave it out"
                    ),
                )
            ]
        )
    return Plan(mesh=mesh, reason=f"data parallel over {mesh.size} processes")


def _nearest(size: int, legal: list[int]) -> str:
    """Return the legal sizes on either side of `size`, for a message."""
    below = [n for n in legal if n < size][-1:]
    above = [n for n in legal if n > size][:1]
    return " or ".join(str(n) for n in below + above)

"""`status`: what the operator says of a run, and what it must not forget over a restart.

`group` and `restarts` are written before the operator acts on them, so that numbers only grow
and nothing is counted twice, whenever the operator dies.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from modelscaling.api.advice import Advice
from modelscaling.api.group_status import (
    GroupStatus,
    RejectedGrowthStatus,
    RescaleRecord,
    RestartStatus,
)
from modelscaling.api.status_base import MESSAGE_MAX_LENGTH, Number, StatusModel

RESCALES_KEPT = 20
"""Entries of the ledger that stay; the oldest go first."""

REJECTED_KEPT = 8
"""Meshes that a plan names as not taken."""

PLAN_REASON_MAX_LENGTH = 1024

CHECKPOINT_FAILURE_MAX_LENGTH = 1024

ACCEPTED_SPEC_MAX_LENGTH = 2**18

ADVICE_KEPT = 8
"""Pieces of advice, one of each type."""


class RunState(StrEnum):
    """What a run is doing, in one word."""

    INVALID = "Invalid"
    """The spec cannot be run."""
    PENDING = "Pending"
    """Pods are awaited."""
    STARTING = "Starting"
    """Pods run, the group forms."""
    STALLED = "Stalled"
    """A group trains, but no step is done."""
    RUNNING = "Running"
    RESCALING = "Rescaling"
    """A group that trained is replaced by another one."""
    RESTARTING = "Restarting"
    """A pod failed and is replaced."""
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(StatusModel):
    """One condition, as Kubernetes defines it."""

    type: Annotated[str, Field(min_length=1, max_length=316)]
    """Type is what the condition speaks of."""

    status: ConditionStatus
    """Status is True, False or Unknown."""

    observed_generation: Annotated[int, Field(ge=0, le=2**53)]
    """ObservedGeneration is the metadata.generation that the condition speaks of."""

    last_transition_time: datetime
    """LastTransitionTime is when status last changed."""

    reason: Annotated[str, Field(min_length=1, max_length=1024)]
    """Reason is one word in CamelCase."""

    message: Annotated[str, Field(max_length=MESSAGE_MAX_LENGTH)]
    """Message is a sentence for people."""


class ModelStatus(StatusModel):
    """Model is the size that the run trains: what the spec stands for, unless that is refused."""

    parameters: Annotated[int, Field(ge=0, le=2**53)]
    """Parameters is the exact number of trainable parameters."""

    flops_per_token: Annotated[int, Field(ge=0, le=2**53)]
    """FlopsPerToken is the number of floating-point operations of forward and backward for one
    token, as PaLM counts them."""

    shape: Annotated[str, Field(max_length=256)]
    """Shape is the model's dimensions in short."""

    size: Annotated[str, Field(max_length=16)]
    """Size is the number of parameters in short, such as 25.4M."""

    next_size: Annotated[str, Field(max_length=16)] | None = None
    """NextSize is the size that the model grows to next by spec.model.growth.schedule; absent where
    nothing is ahead."""

    next_size_tokens: Annotated[int, Field(ge=1, le=2**53)] | None = None
    """NextSizeTokens is how many tokens the run has trained on when it does."""


class RejectedMesh(StatusModel):
    """One mesh that was not taken."""

    mesh: Annotated[str, Field(max_length=128)]
    """Mesh is the size of each axis in short."""

    reason: Annotated[str, Field(max_length=PLAN_REASON_MAX_LENGTH)]
    """Reason says which rule forbids it, what it lacks, or what it costs."""


class PlanStatus(StatusModel):
    """Plan is the device mesh that the run is given."""

    mesh: Annotated[str, Field(max_length=128)]
    """Mesh is the size of each axis in short, such as dp2 or pp2×fsdp4×tp2."""

    estimated_memory_bytes: Annotated[int, Field(ge=0, le=2**60)] | None = None
    """EstimatedMemoryBytes is what the fullest process needs for the model and its training: exact
    for weights, gradients and optimizer state, estimated for the rest. The program itself, buffers
    of collectives and the allocator's waste come on top. Absent where replicas is 0."""

    reason: Annotated[str, Field(max_length=PLAN_REASON_MAX_LENGTH)]
    """Reason says why this mesh."""

    rejected: Annotated[
        tuple[RejectedMesh, ...],
        Field(max_length=REJECTED_KEPT, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """Rejected names meshes that Auto did not take: first those that it prefers and that cannot be
    had, then those that come next."""


class ProgressStatus(StatusModel):
    """Progress is how far the run is, as its first rank reported it last."""

    step: Annotated[int, Field(ge=0, le=2**53)]
    """Step is the number of optimizer steps done."""

    total_steps: Annotated[int, Field(ge=0, le=2**53)]
    """TotalSteps is the number of optimizer steps of the whole run."""

    early_stop_step: Annotated[int, Field(ge=0, le=2**53)] | None = None
    """EarlyStopStep is the step with which early stopping ended the training."""

    tokens: Annotated[int, Field(ge=0, le=2**53)]
    """Tokens is the number of tokens trained on."""

    sample_digest: Annotated[str, Field(max_length=128)]
    """SampleDigest is a rolling digest of the sample numbers of every global batch so far; it is
    the same on every mesh."""

    loss: Number | None = None
    """Loss is the mean loss of the last step's global batch, in nats a token."""

    validation_loss: Number | None = None
    """ValidationLoss is the last measured loss on the held-out samples, in nats a token."""

    training_loss: Number | None = None
    """TrainingLoss is what validationLoss compares with: the mean loss of the steps between the
    last validation and the one before, in nats a token."""

    best_validation_loss: Number | None = None
    """BestValidationLoss is the lowest validation loss so far, in nats a token."""

    best_step: Annotated[int, Field(ge=0, le=2**53)] | None = None
    """BestStep is the step at which it was measured."""

    epoch_tokens: Annotated[int, Field(ge=1, le=2**53)] | None = None
    """EpochTokens is the number of tokens in one pass over the data that is trained on."""

    epochs: Number | None = None
    """Epochs is how many such passes are done."""

    tokens_per_second: Number | None = None
    """TokensPerSecond is the throughput of the whole run over the last steps, in tokens a
    second."""

    mfu_percent: Number | None = None
    """MfuPercent is the model FLOPs utilisation with FLOPs as PaLM counts them, in percent."""

    scaling_efficiency_percent: Number | None = None
    """ScalingEfficiencyPercent is the part of a step's time in which processes did not wait for
    each other, in percent; 100 is a run that scales without loss."""

    goodput_percent: Number | None = None
    """GoodputPercent is the time in useful steps over the wall time since the run's first group
    formed, in percent."""

    checkpoint_step: Annotated[int, Field(ge=0, le=2**53)] | None = None
    """CheckpointStep is the step of the newest complete checkpoint that is known, be it on a volume
    before the present one; a failure goes back to it, and never begins the run again."""

    checkpoint_failure: Annotated[str, Field(max_length=CHECKPOINT_FAILURE_MAX_LENGTH)] | None = (
        None
    )
    """CheckpointFailure is why the last checkpoint could not be written. Training goes on, and the
    next one is tried; absent where it could."""

    estimated_completion_time: datetime | None = None
    """EstimatedCompletionTime is when the run will be complete at its present throughput."""

    @property
    def is_last(self) -> bool:
        """Whether no step follows."""
        return self.early_stop_step is not None or self.step >= self.total_steps


class BestCheckpointStatus(StatusModel):
    """BestCheckpoint is the checkpoint with the lowest validation loss of those that early stopping
    has kept. It is among the run's checkpoints under the number of its step.
    """

    step: Annotated[int, Field(ge=0, le=2**53)]
    """Step is the optimizer step that it was written after."""

    validation_loss: Number
    """ValidationLoss is the loss on the held-out samples at that step, in nats a token."""


class InitFromStatus(StatusModel):
    """InitFrom is the run whose checkpoint this one begins with, once that one was over. It may be
    deleted from then on.
    """

    name: Annotated[str, Field(max_length=253)]
    """Name is its metadata.name."""

    uid: Annotated[str, Field(max_length=64)]
    """Uid is its metadata.uid."""


class ModelScalingStatus(StatusModel):
    """Status is what the operator last saw of the run."""

    observed_generation: Annotated[int, Field(ge=0, le=2**53)] = 0
    """ObservedGeneration is the metadata.generation of the spec that the status speaks of."""

    state: RunState | None = None
    """State is what the run is doing, in one word, derived from the conditions."""

    accepted_spec: Annotated[str, Field(max_length=ACCEPTED_SPEC_MAX_LENGTH)] = ""
    """AcceptedSpec is the last spec that could be run, as JSON. A run whose spec is edited into one
    that cannot goes on with it: lost pods are replaced as it says."""

    start_time: datetime | None = None
    """StartTime is when the run's first pods were created: activeDeadlineSeconds counts from it."""

    completion_time: datetime | None = None
    """CompletionTime is when the run became Complete or Failed; ttlSecondsAfterFinished counts
    from it."""

    replicas: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Replicas is the number of the run's pods that have not ended and are not being deleted, but
    for spares and those that are to replace members: an autoscaler compares it with
    spec.replicas."""

    ready_replicas: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """ReadyReplicas is the number of those whose agent is warm or trains."""

    selector: Annotated[str, Field(max_length=512)] = ""
    """Selector is the label selector of the run's pods, for the scale subresource; those that are
    warm and do not train are left out."""

    image: Annotated[str, Field(max_length=1024)] = ""
    """Image is the trainer image that the run's pods were started with. It stays over an upgrade
    of the operator as long as pods exist, so that all pods of a group are alike."""

    model: ModelStatus | None = None
    """Model is the size that the run trains: what the spec stands for, unless that is refused."""

    plan: PlanStatus | None = None
    """Plan is the device mesh that the run is given."""

    progress: ProgressStatus | None = None
    """Progress is how far the run is."""

    init_from: InitFromStatus | None = None
    """InitFrom is the run of spec.model.initFrom.modelScaling, once it is over."""

    best_checkpoint: BestCheckpointStatus | None = None
    """BestCheckpoint is the best checkpoint so far, with training.earlyStopping."""

    advice: Annotated[
        tuple[Advice, ...],
        Field(
            max_length=ADVICE_KEPT,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
            },
        ),
    ] = ()
    """Advice is what published results say about the run's numbers."""

    group: GroupStatus | None = None
    """Group is the newest decision who trains together."""

    rejected_growth: RejectedGrowthStatus | None = None
    """RejectedGrowth is the growth to the declared model, once it was taken back."""

    restarts: RestartStatus = RestartStatus()
    """Restarts is how many pods failed and were replaced."""

    rescales: Annotated[
        tuple[RescaleRecord, ...],
        Field(max_length=RESCALES_KEPT, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """Rescales is the ledger of the group's changes, the newest last."""

    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=16,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
            },
        ),
    ] = ()
    """Conditions are Accepted, Running, Rescaling, Suspended, Stalled, Overfitting, Complete
    and Failed."""

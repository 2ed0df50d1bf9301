"""The ModelScaling resource: `spec`, put together from its parts."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from modelscaling.api.base import ApiModel, Count, Rule
from modelscaling.api.checkpoint import CheckpointSpec
from modelscaling.api.data import DataSpec
from modelscaling.api.model import ModelSpec
from modelscaling.api.parallelism import ParallelismSpec
from modelscaling.api.training import TrainingSpec

GROUP = "modelscaling.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "ModelScaling"
PLURAL = "modelscalings"
SHORT_NAME = "msc"

NAME_MAX_LENGTH = 56
"""Pods are called NAME-INDEX and a host name has at most 63 characters."""


class ModelScalingSpec(ApiModel):
    """Spec is the run as it is wished: the model's size, the number of replicas, the parallelism,
    the data and the training.
    """

    model: ModelSpec
    """Model is the shape of the decoder that is trained. It cannot be changed yet."""

    replicas: Annotated[Count, Field(ge=0, le=4096)] = 1
    """Replicas is the number of pods. It is what kubectl scale and autoscalers change; 0 pauses
    the run at its last step."""

    processes_per_replica: Annotated[Count, Field(ge=1, le=64)] = 1
    """ProcessesPerReplica is the number of worker processes in a pod, one for each device."""

    parallelism: ParallelismSpec = ParallelismSpec()
    """Parallelism is how replicas × processesPerReplica processes share the work."""

    data: DataSpec
    """Data is what the model is trained on. It cannot be changed."""

    training: TrainingSpec
    """Training is how long the model is trained and with which optimizer settings."""

    checkpoint: CheckpointSpec | None = None
    """Checkpoint says where and how often the run is saved. Without it a failure starts the run
    again from its first step."""

    template: Annotated[
        dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})
    ] = Field(default_factory=dict)
    """Template is a pod template that is merged into the run's pods as a strategic merge patch:
    the container `trainer` is the run's own, so image, resources, env and volumeMounts go there;
    nodeSelector, tolerations, volumes and further containers beside it."""

    suspend: bool = False
    """Suspend saves the run at its step and gives its pods back; false goes on from there."""

    max_restarts: Annotated[Count, Field(ge=0, le=10000)] = 10
    """MaxRestarts is how many times a pod that failed is replaced, over the whole run, before the
    run fails. A pod that was evicted or deleted does not count."""

    active_deadline_seconds: Annotated[Count, Field(ge=1, le=315_360_000)] | None = None
    """ActiveDeadlineSeconds is how long the run may take from its first start, in seconds, before
    it is stopped as Failed. Time in suspension counts."""

    ttl_seconds_after_finished: Annotated[Count, Field(ge=0, le=315_360_000)] | None = None
    """TtlSecondsAfterFinished is how long after its end the run, with its pods and their logs, is
    deleted, in seconds. By default it stays."""

    rules = (
        Rule(
            expression=(
                "self.parallelism.strategy != 'Custom' || "
                "!has(self.parallelism.dataReplicate) || self.replicas == 0 || "
                "self.parallelism.dataReplicate == self.replicas * self.processesPerReplica"
            ),
            message=(
                "parallelism.dataReplicate={parallelism.dataReplicate} must equal "
                "replicas={replicas} × processesPerReplica={processesPerReplica}; change "
                "one, or remove dataReplicate to let it follow"
            ),
            field="parallelism",
        ),
    )

    immutable = (
        ("model", "create a new ModelScaling for another model"),
        ("data", "create a new ModelScaling for other data"),
    )

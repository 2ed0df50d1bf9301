"""The ModelScaling resource: `spec`, put together from its parts."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from modelscaling.api.base import ApiModel, Count, Rule
from modelscaling.api.checkpoint import CheckpointSpec
from modelscaling.api.data import DataSpec
from modelscaling.api.elastic import ElasticSpec
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


TRAINER_CONTAINER = "trainer"
"""The container of a run's pods, and of `spec.template`, that trains."""

_DATA_AXES = ("dataReplicate", "dataShard")


def _product_rule(given: tuple[str, ...]) -> Rule:
    """Return the rule for a mesh with these data axes: unless both are given, the other follows
    what is left of the processes.
    """
    axes = [f"parallelism.{axis}" for axis in (*given, "pipeline", "context", "tensor")]
    product = " * ".join(f"self.{axis}" for axis in axes)
    applies = " && ".join(
        f"{'' if axis in given else '!'}has(self.parallelism.{axis})" for axis in _DATA_AXES
    )
    processes = "self.replicas * self.processesPerReplica"
    is_exact = given == _DATA_AXES
    holds = f"{product} == {processes}" if is_exact else f"{processes} % ({product}) == 0"
    shown = " × ".join(f"{axis.removeprefix('parallelism.')}={{{axis}}}" for axis in axes)
    fix = "change one, or remove dataShard to let it follow" if is_exact else "change one"
    return Rule(
        expression=(
            f"self.parallelism.strategy != 'Custom' || self.replicas == 0 || !({applies}) || "
            f"{holds}"
        ),
        message=(
            f"{shown} must {'equal' if is_exact else 'divide'} replicas={{replicas}} × "
            f"processesPerReplica={{processesPerReplica}}; {fix}"
        ),
        field="parallelism",
    )


class ModelScalingSpec(ApiModel):
    """Spec is the run as it is wished: the model's size, the number of replicas, the parallelism,
    the data and the training.
    """

    model: ModelSpec
    """Model is the shape of the decoder that is trained. It may be changed to a larger one while
    the run trains: the model grows, see growth. A change that is refused leaves the run training
    as it was."""

    replicas: Annotated[Count, Field(ge=0, le=4096)] = 1
    """Replicas is the number of pods. It is what kubectl scale and autoscalers change; 0 pauses
    the run at its last step."""

    processes_per_replica: Annotated[Count, Field(ge=1, le=64)] = 1
    """ProcessesPerReplica is the number of worker processes in a pod, one for each device."""

    parallelism: ParallelismSpec = ParallelismSpec()
    """Parallelism is how replicas × processesPerReplica processes share the work."""

    elastic: ElasticSpec = ElasticSpec()
    """Elastic is how the run does with fewer pods than replicas, and how many wait beside it."""

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
        *(_product_rule(given) for given in ((), ("dataReplicate",), ("dataShard",), _DATA_AXES)),
        Rule(
            expression=(
                "self.parallelism.strategy != 'Custom' || "
                "self.parallelism.tensorPlacement == 'AcrossPods' || "
                "self.processesPerReplica % self.parallelism.tensor == 0"
            ),
            message=(
                "tensor={parallelism.tensor} does not divide "
                "processesPerReplica={processesPerReplica}, so it would reach across pods; set "
                "tensor to a divisor of {processesPerReplica}, or tensorPlacement to AcrossPods"
            ),
            field="parallelism.tensor",
        ),
        Rule(
            expression=(
                "!has(self.elastic.minReplicas) || self.replicas == 0 || "
                "self.elastic.minReplicas <= self.replicas"
            ),
            message=(
                "minReplicas={elastic.minReplicas} is above replicas={replicas}; lower it, or "
                "raise replicas"
            ),
            field="elastic.minReplicas",
        ),
        Rule(
            expression=(
                "!has(self.elastic.maxReplicas) || self.replicas <= self.elastic.maxReplicas"
            ),
            message=(
                "replicas={replicas} is above maxReplicas={elastic.maxReplicas}; lower it, or "
                "raise maxReplicas"
            ),
            field="replicas",
        ),
        Rule(
            expression=(
                "!has(self.model.initFrom) || !has(self.model.initFrom.modelScaling) || "
                "has(self.checkpoint)"
            ),
            message=(
                "modelScaling {model.initFrom.modelScaling.name} is read from the volume that both "
                "runs save to; give spec.checkpoint with the volume of "
                "{model.initFrom.modelScaling.name}"
            ),
            field="model.initFrom.modelScaling",
        ),
        Rule(
            expression=(
                "!has(self.model.growth.tolerance) || double(self.data.validationFraction) > 0.0"
            ),
            message=(
                "tolerance={model.growth.tolerance} is for the loss of held-out data, and "
                "validationFraction={data.validationFraction} holds none out; remove it, or create "
                'a new ModelScaling with validationFraction above 0, such as "0.02"'
            ),
            field="model.growth.tolerance",
        ),
        Rule(
            expression="!has(self.training.earlyStopping) || has(self.checkpoint)",
            message=(
                "earlyStopping with patience={training.earlyStopping.patience} keeps the best "
                "checkpoint, and there is no checkpoint.volume for one; give spec.checkpoint, or "
                "remove earlyStopping"
            ),
            field="training.earlyStopping",
        ),
        Rule(
            expression=(
                "!has(self.training.earlyStopping) || double(self.data.validationFraction) > 0.0"
            ),
            message=(
                "earlyStopping needs held-out data, and validationFraction="
                '{data.validationFraction} holds none out; set it above 0, such as "0.02", or '
                "remove earlyStopping"
            ),
            field="training.earlyStopping",
        ),
    )

    immutable = (("data", "create a new ModelScaling for other data"),)

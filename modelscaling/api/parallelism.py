"""`spec.parallelism`: how the model is spread over the processes."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from modelscaling.api.base import ApiModel, Count, Rule
from modelscaling.byte_size import BYTE_SIZE_PATTERN

_DataAxis = Annotated[Count, Field(ge=1, le=65536)]
_ModelAxis = Annotated[Count, Field(ge=1, le=1024)]
"""The bounds keep the product of all axes within CEL's 64 bits."""


class ParallelismStrategy(StrEnum):
    """Who decides the mesh."""

    AUTO = "Auto"
    CUSTOM = "Custom"


class TensorPlacement(StrEnum):
    """How far tensor parallelism may reach."""

    WITHIN_POD = "WithinPod"
    ACROSS_PODS = "AcrossPods"


def _only_custom(field: str, unset: str) -> Rule:
    """Return the rule that `field` is only given with a mesh of one's own."""
    return Rule(
        expression=f"self.strategy == 'Custom' || {unset}",
        message=(
            f"{field}={{{field}}} is given but strategy is {{strategy}}; set strategy to Custom, "
            f"or remove {field}"
        ),
        field=field,
    )


class ParallelismSpec(ApiModel):
    """Parallelism is the device mesh: how replicas × processesPerReplica processes share the
    work.
    """

    strategy: ParallelismStrategy = ParallelismStrategy.AUTO
    """Strategy is Auto (the operator chooses a mesh that fits, and says why in status.plan) or
    Custom (the axes given here)."""

    data_replicate: _DataAxis | None = None
    """DataReplicate is the number of full copies of the model, each on its own part of the global
    batch (DDP; with dataShard, HSDP). By default it is what the other axes leave of replicas ×
    processesPerReplica, so that it follows a change of replicas."""

    data_shard: _DataAxis | None = None
    """DataShard is the number of parts that a copy's weights, gradients and optimizer state are cut
    into, each on its own part of the global batch (FSDP). By default it is 1, or with dataReplicate
    given what the other axes leave of replicas × processesPerReplica."""

    tensor: _ModelAxis = 1
    """Tensor is the number of parts that each matrix product is cut into, with sequence and loss
    parallelism. It talks most, so it stays within a pod unless tensorPlacement says otherwise."""

    pipeline: _ModelAxis = 1
    """Pipeline is the number of parts that the layers are cut into, one after the other. Each step
    has at least as many micro batches as stages (1F1B)."""

    context: _ModelAxis = 1
    """Context is the number of parts that each sample is cut into along its tokens, for samples
    that are too long for one process. It shards the weights too."""

    stages_per_process: Annotated[Count, Field(ge=1, le=64)] = 1
    """StagesPerProcess is the number of pipeline stages in each process: above 1 they are
    interleaved, which idles less and talks more."""

    tensor_placement: TensorPlacement = TensorPlacement.WITHIN_POD
    """TensorPlacement is WithinPod (tensor divides processesPerReplica) or AcrossPods (a fast
    network joins the pods)."""

    device_memory: (
        Annotated[str, Field(pattern=BYTE_SIZE_PATTERN, min_length=1, max_length=24)] | None
    ) = None
    """DeviceMemory is the memory that one process may use for the model and its training, such as
    80Gi; a mesh that is estimated to need more is refused. By default it is the memory limit of the
    template's container trainer over processesPerReplica, where that computes on a CPU and has one;
    else it is not limited."""

    rules = (
        _only_custom("dataReplicate", "!has(self.dataReplicate)"),
        _only_custom("dataShard", "!has(self.dataShard)"),
        *(
            _only_custom(field, f"self.{field} == 1")
            for field in ("tensor", "pipeline", "context", "stagesPerProcess")
        ),
        Rule(
            expression=(
                "self.strategy != 'Custom' || self.stagesPerProcess == 1 || self.pipeline > 1"
            ),
            message=(
                "stagesPerProcess={stagesPerProcess} interleaves the stages of a pipeline, and "
                "pipeline={pipeline}; set pipeline to at least 2, or stagesPerProcess to 1"
            ),
            field="stagesPerProcess",
        ),
    )

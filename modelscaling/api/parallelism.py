"""`spec.parallelism`: how the model is spread over the processes."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from modelscaling.api.base import ApiModel, Count, Rule


class ParallelismStrategy(StrEnum):
    """Who decides the mesh."""

    AUTO = "Auto"
    CUSTOM = "Custom"


class ParallelismSpec(ApiModel):
    """Parallelism is the device mesh: how replicas × processesPerReplica processes share the
    work.
    """

    strategy: ParallelismStrategy = ParallelismStrategy.AUTO
    """Strategy is Auto (the operator chooses a mesh that fits, and says why in status.plan) or
    Custom (the axes given here)."""

    data_replicate: Annotated[Count, Field(ge=1, le=65536)] | None = None
    """DataReplicate is the number of full copies of the model, each on its own part of the global
    batch (DDP). Defaults to what is left of replicas × processesPerReplica, so that a change of
    replicas changes it."""

    rules = (
        Rule(
            expression="self.strategy == 'Custom' || !has(self.dataReplicate)",
            message=(
                "dataReplicate={dataReplicate} is given but strategy is {strategy}; set "
                "strategy to Custom, or remove dataReplicate"
            ),
            field="dataReplicate",
        ),
    )

"""`spec.checkpoint`: where and how often the run is saved."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from modelscaling.api.base import ApiModel, Count


class CheckpointSpec(ApiModel):
    """Checkpoint says where and how often the run is saved."""

    volume: Annotated[
        dict[str, Any],
        Field(
            min_length=1,
            max_length=1,
            json_schema_extra={
                "x-kubernetes-preserve-unknown-fields": True,
                "minProperties": 1,
                "maxProperties": 1,
            },
        ),
    ]
    """Volume is a Kubernetes volume source that all pods of the run can mount for writing, such
    as {persistentVolumeClaim: {claimName: runs}}. The run writes below NAMESPACE/NAME in it."""

    every_steps: Annotated[Count, Field(ge=1, le=1_000_000)] = 200
    """EverySteps is how many steps lie between two checkpoints; a failure costs at most so
    many."""

    keep: Annotated[Count, Field(ge=1, le=1000)] = 3
    """Keep is how many of the newest checkpoints stay on the volume."""

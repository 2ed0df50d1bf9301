"""`spec.elastic`: how a run does with fewer pods than it wishes for, and how many wait beside."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from modelscaling.api.base import ApiModel, Count


class ElasticPolicy(StrEnum):
    """Who changes the number of replicas."""

    MANUAL = "Manual"
    """Whoever edits the run: people, kubectl scale, a HorizontalPodAutoscaler."""


class ElasticSpec(ApiModel):
    """Elastic says how the run does with fewer pods than replicas, and how many wait beside it."""

    min_replicas: Annotated[Count, Field(ge=1, le=4096)] | None = None
    """MinReplicas is the fewest pods that the run trains on with while others are lost or do not
    come; it grows back as they do. By default it waits for all replicas."""

    max_replicas: Annotated[Count, Field(ge=1, le=4096)] | None = None
    """MaxReplicas is the most that replicas may be set to, by whomever."""

    policy: ElasticPolicy = ElasticPolicy.MANUAL
    """Policy is who changes replicas. Manual is people, kubectl scale or a
    HorizontalPodAutoscaler."""

    spares: Annotated[Count, Field(ge=0, le=64)] = 0
    """Spares is how many pods beyond replicas wait with everything loaded, so that one that is
    lost is replaced without a start."""

    patience_seconds: Annotated[Count, Field(ge=0, le=86400)] = 60
    """PatienceSeconds is how long a group that trains waits for all pods of a larger one, before
    it grows to those that have come, where minReplicas allows it."""

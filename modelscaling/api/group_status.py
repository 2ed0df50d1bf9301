"""Those parts of `status` that speak of the group: who trains together, which of them failed, and
what the changes cost.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field

from modelscaling.api.status_base import MESSAGE_MAX_LENGTH, Number, StatusModel

_PodUids = Annotated[
    tuple[Annotated[str, Field(max_length=64)], ...],
    Field(max_length=4096, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
]


class GroupStatus(StatusModel):
    """Group is the newest decision who trains together. It is written before any agent is told,
    so that its number only grows.
    """

    generation: Annotated[int, Field(ge=0, le=2**53)]
    """Generation is the number of the decision; an agent turns lower ones away."""

    digest: Annotated[str, Field(max_length=64)]
    """Digest stands for members, mesh and settings; an equal one is the same group."""

    members: Annotated[int, Field(ge=0, le=4096)]
    """Members is the number of pods in the group."""

    pods: _PodUids = ()
    """Pods names the members by the UIDs of their pods, in the order of their ranks."""

    leaving: _PodUids = ()
    """Leaving names the pods that only meet the group to hand their part of the state over, by
    their UIDs."""

    replicas: Annotated[int, Field(ge=0, le=4096)] = 0
    """Replicas is the number of pods that the spec wished for when the group was decided; an
    elastic run may have fewer."""

    processes: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Processes is the number of worker processes in the group."""

    mesh: Annotated[str, Field(max_length=128)]
    """Mesh is the device mesh of the group in short."""

    model: Annotated[str, Field(max_length=2048)] = ""
    """Model is the model that the group trains, as JSON: its shape, and how it may grow. A change
    of spec.model is held against it."""

    cause: Annotated[str, Field(max_length=64)]
    """Cause is the reason for which the group was formed, in one word."""

    decided_time: datetime
    """DecidedTime is when the group was decided."""

    broken: Annotated[str, Field(max_length=64)] = ""
    """Broken is why the group cannot stay as it is, in one word, once one of its pods was lost or
    told to leave; it is the cause of the next group."""

    stopped_time: datetime | None = None
    """StoppedTime is when the group before was seen to be broken, or was replaced, if it trained;
    downtime is counted from it where no process is left that knows better."""

    stopped_mesh: Annotated[str, Field(max_length=128)] | None = None
    """StoppedMesh is the mesh of the group before, if one trained."""

    trained: bool = False
    """Trained is true once the group has been seen to train."""

    recorded_attempt: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """RecordedAttempt is the newest attempt of the group that the ledger knows; a group whose
    workers die is formed again by its own pods, which is another attempt."""


class RejectedGrowthStatus(StatusModel):
    """RejectedGrowth is a growth that was taken back. The run keeps the model before until
    spec.model changes.
    """

    model: Annotated[str, Field(max_length=2048)]
    """Model is what was grown to, as group.model carries it."""

    kept: Annotated[str, Field(max_length=2048)]
    """Kept is what the run went back to, in the same form."""

    loss_before: Number
    """LossBefore is the loss on the held-out samples before the growth, in nats a token."""

    loss_after: Number | None = None
    """LossAfter is their loss right after it; absent where it was no number."""

    allowed_rise: Number
    """AllowedRise is by how much it might be higher, in nats a token."""


class RestartStatus(StatusModel):
    """Restarts is how many pods and workers failed and were replaced; it decides the pause before
    the next.
    """

    count: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Count is the number of failures over the whole run; above spec.maxRestarts the run fails."""

    consecutive: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Consecutive is the number of attempts that failed since a step was last completed. A failed
    pod is replaced at once after the first, then after 1, 2, 4 … seconds, at most 60; the run
    fails at the sixth."""

    generation: Annotated[int, Field(ge=0, le=2**53)] = 0
    """Generation is the number of the group that failed last."""

    attempt: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Attempt is which attempt of that group it was."""

    step: Annotated[int, Field(ge=0, le=2**53)] = 0
    """Step is the furthest step that was reached before the last failure."""

    last_time: datetime | None = None
    """LastTime is when the last failure was seen."""

    message: Annotated[str, Field(max_length=MESSAGE_MAX_LENGTH)] = ""
    """Message is the last failure in a sentence."""

    counted: Annotated[
        tuple[Annotated[str, Field(max_length=128)], ...],
        Field(max_length=4096, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    ] = ()
    """Counted names the failures still to be seen that need no counting any more, those beside a
    group that went on among them: the UIDs of failed pods, UID#N for N workers of a pod that died,
    and generation:N for a group that broke in living pods."""


class RescaleRecord(StatusModel):
    """One change of the group, with what it cost."""

    time: datetime
    """Time is when the new group's first step began."""

    cause: Annotated[str, Field(max_length=64)]
    """Cause is the reason of the change, in one word."""

    from_: Annotated[str, Field(max_length=128, alias="from")]
    """From is the mesh before."""

    to: Annotated[str, Field(max_length=128)]
    """To is the mesh after."""

    downtime_seconds: Number
    """DowntimeSeconds is how long no step was computed: from the end of the old group's last step,
    or from the moment at which a loss in the middle of one was noticed, to the beginning of the new
    group's first."""

    lost_steps: Annotated[int, Field(ge=0, le=2**53)]
    """LostSteps is the number of steps that had to be done again."""

    step: Annotated[int, Field(ge=0, le=2**53)] = 0
    """Step is the number of steps done in the state that the new group went on with."""

    source: Annotated[str, Field(max_length=32)] = ""
    """Source is where that state came from: Memory, Snapshot, Checkpoint, or Initial: made anew."""

    loss_before: Number | None = None
    """LossBefore is the loss of the last step before the change, in nats a token; where the model
    grew, or went back from that, that of the held-out samples, if there are any."""

    loss_after: Number | None = None
    """LossAfter is the loss of the first step after the change, in nats a token; where the model
    grew, or went back from that, that of the held-out samples right after the growth."""

"""What operator and agents say to each other, and how each message is authenticated.

Every pod of a run has one agent, which serves HTTP on `AGENT_PORT` of its pod's address:

| request | body | answer |
|---|---|---|
| `GET /healthz`, `GET /readyz`, `GET /metrics` | – | open to anybody |
| `GET /v1/status?after=V` | – | `AgentStatus`; see below for `after` |
| `GET /v1/store?generation=N&attempt=A` | – | `StoreAddress`; 404 until it is known |
| `GET /v1/heartbeat?generation=N&index=I` | – | a WebSocket; 404 until the group is known |
| `POST /v1/group` | `GroupAssignment` | 202; 409 with `AgentStatus` if the number is not newer |
| `POST /v1/stop` | `StopRequest` | 202; 409 with `AgentStatus` if the number is older |

With `after`, a status is held back for some seconds as long as its version is V. The store and the
heartbeat are the first member's: the address is that of attempt A or a later one, and the WebSocket
lives as long as both ends do and brings `BrokenAttempt`.

A repeated assignment (same number, same content) is answered with 202; 409 also answers an
assignment to an agent that ends, and a member that asks for the store or the heartbeat of an older
number. 400 is a body or a query that cannot be read, 401 a missing or wrong signature, 403 a
message for another run, 422 an assignment that the pod has no place in.

The operator alone decides who is in the group; each decision has a number, the generation, that
only grows. An agent obeys the newest number it has seen and turns older ones away. How often the
same members meet is up to them: each attempt to form their group has a number below the
generation's, given by the first member, so that a worker that died is replaced and the group formed
again whether the operator is there or not. Requests
below `/v1` carry an HMAC over method, path and body, keyed by the run's own Secret, so that a
pod of another run can neither steer nor read it; a replayed message has an old number.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import StrEnum

from modelscaling.configuration import DataConfiguration, Message, RunConfiguration
from modelscaling.exit_code import ExitCode
from modelscaling.mesh import Mesh
from modelscaling.shape import ModelShape
from modelscaling.validation_history import Validation, ValidationHistory

AGENT_PORT = 9400
AGENT_PORT_NAME = "metrics"

GRACE_PERIOD_S = 60
"""Seconds from SIGTERM until a pod's container is killed, as its pod declares it."""

SIGNATURE_HEADER = "X-ModelScaling-Signature"

CONFIGURATION_FILE = "/etc/modelscaling/run/run.json"
"""Where a pod finds the RunConfiguration that it warms up with (the run's ConfigMap)."""
MESH_FILE = "/etc/modelscaling/run/mesh.json"
"""Where a pod finds the mesh that was planned when it was created: what it prepares for, not what
it is told to train on.
"""
KEY_FILE = "/etc/modelscaling/key/key"
"""Where a pod finds the key of its run (the run's Secret)."""
CHECKPOINT_MOUNT = "/var/lib/modelscaling/checkpoints"
"""Where a pod finds the run's own directory on the checkpoint volume."""
SOURCE_MOUNT = "/var/lib/modelscaling/init-from"
"""Where a pod finds the directory of the run that its own begins with."""
SCRATCH_MOUNT = "/tmp"  # noqa: S108 - an emptyDir of the pod's own
"""Where a pod may write what need not outlive it: token caches, compiler caches."""


class AgentEnvironment(StrEnum):
    """Environment variables that tell an agent who it is."""

    NAMESPACE = "MODELSCALING_NAMESPACE"
    NAME = "MODELSCALING_NAME"
    RUN_UID = "MODELSCALING_RUN_UID"
    INDEX = "MODELSCALING_INDEX"
    PROCESSES = "MODELSCALING_PROCESSES"
    ADDRESS = "MODELSCALING_ADDRESS"
    """The pod's own address (status.podIP)."""


def sign(key: bytes, *, method: str, path: str, body: bytes) -> str:
    """Return the signature of a request; `path` includes the query string."""
    signed = b"\n".join([method.encode(), path.encode(), body])
    return hmac.new(key, signed, hashlib.sha256).hexdigest()


def is_signed(key: bytes, signature: str | None, *, method: str, path: str, body: bytes) -> bool:
    """Whether `signature` is the request's own, compared in constant time."""
    expected = sign(key, method=method, path=path, body=body)
    return signature is not None and hmac.compare_digest(expected, signature)


class Member(Message):
    """A pod in a group."""

    index: int
    address: str
    """The pod's IP address."""
    port: int = AGENT_PORT
    """Where its agent listens; another number than AGENT_PORT only where agents share an
    address."""
    processes: int


class GroupAssignment(Message):
    """The decision who trains together, on which mesh and what; ranks follow the members'
    order.
    """

    run_uid: str
    generation: int
    members: tuple[Member, ...]
    mesh: Mesh
    configuration: RunConfiguration
    leaving: tuple[Member, ...] = ()
    """Pods of the group before that this one does without: they meet the others, hand over what
    they hold of the state, and end. Their ranks follow those of the mesh."""
    checkpoint_step: int | None = None
    """The newest checkpoint that the run is known to have: a group that finds none, and no state in
    memory, does not begin anew, as that would pass over it."""

    def digest(self) -> str:
        """Return a digest of all but the number, who leaves and what is known of checkpoints: two
        assignments with equal digests are the same group, doing the same work.
        """
        content = self.model_dump_json(exclude={"generation", "leaving", "checkpoint_step"})
        return hashlib.sha256(content.encode()).hexdigest()[:16]


class StopMode(StrEnum):
    """What an agent does when it is told to stop."""

    SUSPEND = "Suspend"
    """Save at a step boundary, then exit with INTERRUPTED."""
    RELEASE = "Release"
    """Save at a step boundary, then exit with DONE: the pod is no longer a part of the run."""


class StopRequest(Message):
    """Ask the group to end at a step boundary that all its ranks agree on."""

    run_uid: str
    generation: int
    mode: StopMode


class StoreAddress(Message):
    """Where the processes of a group meet: the TCP store of its first rank."""

    generation: int
    port: int
    attempt: int
    """How many times the group of this number has been formed, this time included."""
    with_leaving: bool
    """Whether the pods that leave are awaited: not any more once their state was handed over."""


class BrokenAttempt(Message):
    """What the first member tells the others through their heartbeats: to leave an attempt at
    once, and those before it, wherever they are in it.
    """

    broken_attempt: int


class AgentState(StrEnum):
    """What an agent is doing."""

    STARTING = "Starting"
    """Its workers import torch and open the data."""
    WARM = "Warm"
    """Its workers wait for a group: at first, or after the last one broke."""
    FORMING = "Forming"
    """Its workers meet the group's others and load the state."""
    TRAINING = "Training"
    STOPPING = "Stopping"
    """Its workers save at a step boundary and end."""
    ENDED = "Ended"
    """Complete, released or failed; the process exits with `exit_code`."""


class StateSource(StrEnum):
    """Where a group took the run's state from."""

    MEMORY = "Memory"
    """From the memory of processes that held the newest step."""
    SNAPSHOT = "Snapshot"
    """From copies in the memory of other processes, some steps old."""
    CHECKPOINT = "Checkpoint"
    INITIAL = "Initial"
    """Made anew: the run begins, or nothing was left of what had been trained."""


class Resumption(Message):
    """How the present group began, or went on with what others had begun."""

    generation: int
    attempt: int
    source: StateSource
    step: int
    """Optimizer steps done in the state that it went on with."""
    furthest_step: int
    """The most steps that any of its processes had seen done; those above `step` are done again."""
    stopped_time: float | None = None
    """When training stopped, seconds since 1970: the end of the last step, or the moment at which
    the loss of a peer was noticed in the middle of one. None where no process of the group took
    part in that."""
    resumed_time: float
    """When its first step began, seconds since 1970."""
    loss_before: float | None = None
    """Loss of the last step before, nats a token; where the model grew, and there is held-out data,
    that of these samples before it did."""
    loss_after: float | None = None
    """Loss of its first step, nats a token, or of the held-out samples after growth."""


class Progress(Message):
    """How far a run is, as rank 0 knows it."""

    step: int
    """Optimizer steps done."""
    total_steps: int
    tokens: int
    """Tokens trained on so far, over the whole run."""
    sample_digest: str
    """Rolling digest of the sample numbers of every global batch so far; the same on every
    mesh."""
    loss: float | None = None
    """Mean loss of the last step's global batch, nats a token."""
    validation_loss: float | None = None
    validations: ValidationHistory = ValidationHistory()
    epoch_tokens: int | None = None
    """Tokens in one pass over the training part of the data."""
    is_stopped_early: bool = False
    """Whether the run ends with this step, as its validation loss does not improve any more."""
    best_checkpoint: Validation | None = None
    """The best validation whose checkpoint is kept; only with early stopping."""
    gradient_norm: float | None = None
    """Norm of the last step's gradient over the whole model, before clipping."""
    step_seconds: float | None = None
    """Wall time of the last step."""
    tokens_per_second: float | None = None
    """Over the last steps."""
    mfu_ratio: float | None = None
    """Model FLOPs utilisation with FLOPs as PaLM counts them, 0 to 1."""
    goodput_ratio: float | None = None
    """Time in useful steps ÷ wall time since the run's first group formed, 0 to 1."""
    scaling_efficiency_ratio: float | None = None
    """The part of a step's time in which processes did not wait for each other, 0 to 1."""
    gradient_noise_scale: float | None = None
    """In samples (McCandlish et al. 2018); None with a single process, which cannot tell."""
    checkpoint_step: int | None = None
    """The step of the newest complete checkpoint."""
    checkpoint_failure: str | None = None
    """Why the last checkpoint could not be written; None where it could. Training goes on, and the
    next one is tried."""
    resumption: Resumption | None = None
    """How the present group took the run up; None before its first step."""

    @property
    def epochs(self) -> float | None:
        """Passes over the training part of the data that are done."""
        return self.tokens / self.epoch_tokens if self.epoch_tokens else None

    @property
    def is_last(self) -> bool:
        """Whether no step follows."""
        return self.is_stopped_early or self.step >= self.total_steps


class LateWorker(Message):
    """A worker that has not done a step for much longer than its steps usually take."""

    rank: int
    step: int
    """Optimizer steps that it has done."""
    seconds: float
    """Since the last of them, or since its group was formed."""
    is_waiting: bool
    """Whether it waits for its peers: then it is one of those that it waits for that hangs."""


class Failure(Message):
    """Why an agent or its group stopped."""

    exit_code: ExitCode
    reason: str
    """One word in CamelCase, such as NoData."""
    message: str
    """A sentence for people: the culprit, what was expected, the fix."""
    rank: int | None = None


class GrowthRejection(Message):
    """Why a group took the growth of its model back, before its first step. Losses are of the same
    held-out samples, in nats a token.
    """

    model: ModelShape
    """What was trained before; the group's processes hold that state again."""
    loss_before: float
    loss_after: float | None
    """None where it was no number."""
    allowed_rise: float

    @property
    def message(self) -> str:
        """Say so in a sentence, without its end."""
        after = "no number" if self.loss_after is None else f"{self.loss_after:.4f}"
        return (
            f"growth took the validation loss from {self.loss_before:.4f} to {after} nats a token, "
            f"and {self.allowed_rise:.4f} more is allowed (model.growth.tolerance)"
        )


class OpenedData(Message):
    """What an agent's workers have opened to train on, and as what it was declared."""

    data: DataConfiguration
    vocabulary_size: int
    digest: str
    """Of all its tokens."""


class AgentStatus(Message):
    """What an agent says of itself."""

    run_uid: str
    index: int
    state: AgentState
    generation: int = 0
    """The newest number that the agent has obeyed; 0 before the first."""
    assignment_digest: str | None = None
    """The digest of that number's assignment."""
    progress: Progress | None = None
    """Only from the agent of rank 0."""
    failure: Failure | None = None
    """Why the last group broke, or why the agent ended."""
    growth_rejection: GrowthRejection | None = None
    """Why the group of this number ended, if that was it; it does not form again."""
    version: int = 0
    """Grows with everything here but progress and the seconds of late workers; never twice the
    same in an agent's life."""
    attempt: int = 0
    """How many times the group of this number has been formed."""
    worker_failures: int = 0
    """How many of its workers have died, failed or been given up as hung, over its life; each was
    replaced in the pod."""
    is_leaving: bool = False
    """Whether its pod has been told to end, and trains on until the group has formed without it."""
    lost: tuple[int, ...] = ()
    """Indexes of members whose agents have fallen silent, as this agent hears them."""
    unreachable: tuple[int, ...] = ()
    """Indexes of members whose machines have not answered this one for long, while the group does
    not come on."""
    late: tuple[LateWorker, ...] = ()
    """Its workers that do not come on."""
    data: OpenedData | None = None
    """What its workers have opened; None before they have."""


class TerminationReport(Message):
    """What an agent leaves behind in its container's termination message (at most 4096 bytes)."""

    generation: int
    progress: Progress | None = None
    failure: Failure | None = None

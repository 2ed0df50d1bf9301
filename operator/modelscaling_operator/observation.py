"""What is seen of a run: frozen values, parsed once from what the API server and agents say."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from modelscaling.api.conditions import Reason
from modelscaling.api.modelscaling import TRAINER_CONTAINER
from modelscaling.api.status import ModelScalingStatus
from modelscaling.protocol import AgentEnvironment, AgentStatus, TerminationReport
from modelscaling_operator.identity import (
    INDEX_LABEL,
    REVISION_LABEL,
    ROLE_LABEL,
    SPARE,
    RunIdentity,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

Json = dict[str, Any]


class PodPhase(StrEnum):
    """A pod's phase, as Kubernetes counts them."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How the trainer's container ended."""

    code: int
    reason: str
    """The kubelet's word, such as OOMKilled or Error."""
    report: TerminationReport | None
    """What the agent left behind; None if it died before it could."""
    text: str
    """The termination message as it is, if it is not a report."""
    finished: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Why a pod does not run yet."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod that carries the run's name."""

    name: str
    uid: str
    index: int
    owner_uid: str
    revision: str
    image: str
    processes: int
    """How many worker processes it was made for."""
    phase: PodPhase
    created: datetime
    node: str = ""
    """The node that it is bound to; empty before it is."""
    address: str | None = None
    is_ready: bool = False
    """Whether its workers have warmed up: the last word of its kubelet, which may be gone."""
    deletion_deadline: datetime | None = None
    """When the kubelet should have ended it; None unless it is being deleted."""
    disruption: str | None = None
    """Why Kubernetes took it away (eviction, preemption, node shutdown), if it did."""
    exit: Exit | None = None
    obstacle: Obstacle | None = None
    is_spare: bool = False
    """Whether it is labelled as a spare."""

    @property
    def ended(self) -> bool:
        """Whether its containers have ended for good."""
        return self.phase in {PodPhase.SUCCEEDED, PodPhase.FAILED}

    @property
    def has_agent(self) -> bool:
        """Whether an agent can be expected to answer in it; it does while it is being deleted."""
        return self.phase is PodPhase.RUNNING and self.address is not None

    @property
    def live(self) -> bool:
        """Whether it runs and stays."""
        return self.has_agent and self.deletion_deadline is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """An agent that does not answer."""

    since: datetime
    message: str
    is_refusal: bool = False
    """Whether its machine answered that nobody listens: the machine is there, the agent is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What the API server said to an action that it refused."""

    reason: Reason
    message: str
    retry_time: datetime
    """When the action is tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRun:
    """The run whose checkpoint this one begins with, as it is found."""

    name: str
    uid: str | None = None
    """None where there is no such run."""
    volume: Json | None = None
    """What it saves to, if it does."""
    status: ModelScalingStatus = field(default_factory=ModelScalingStatus)
    awaits: tuple[str, ...] = ()
    """The runs that it waits for itself, the next one first."""


@dataclass(frozen=True, kw_only=True)  # without slots, which keep nothing cached
class Observation:
    """Everything that a decision is made from, save the wish and the time."""

    run: RunIdentity
    generation: int
    """metadata.generation: counts the edits of the spec."""
    status: ModelScalingStatus
    pods: tuple[Pod, ...] = ()
    """All pods that carry the run's name, another run's of the same name among them."""
    agents: Mapping[str, AgentStatus | Silence] = field(default_factory=dict)
    """What the agents said, by the UID of their pods."""
    refusal: Refusal | None = None
    source: SourceRun | None = None
    """The run of spec.model.initFrom.modelScaling, while it is awaited."""

    @cached_property
    def own(self) -> tuple[Pod, ...]:
        """The run's own pods by index."""
        mine = (pod for pod in self.pods if pod.owner_uid == self.run.uid)
        return tuple(sorted(mine, key=lambda pod: pod.index))

    @cached_property
    def members(self) -> tuple[Pod | None, ...]:
        """The pods of the present group by rank; None for one that is gone."""
        return self._named(self.status.group.pods if self.status.group else ())

    @cached_property
    def leavers(self) -> tuple[Pod | None, ...]:
        """The pods that only hand their state over to the present group; None as above."""
        return self._named(self.status.group.leaving if self.status.group else ())

    @cached_property
    def outsiders(self) -> tuple[Pod, ...]:
        """The run's own pods that have no part in the present group."""
        group = self.status.group
        inside = frozenset((*group.pods, *group.leaving) if group else ())
        return tuple(pod for pod in self.own if pod.uid not in inside)

    def agent(self, pod: Pod) -> AgentStatus | None:
        """Return what the pod's agent said, if it answered."""
        answer = self.agents.get(pod.uid)
        return answer if isinstance(answer, AgentStatus) else None

    def silent_since(self, pod: Pod) -> datetime | None:
        """Return since when the pod's agent does not answer; None if it does, or was not asked."""
        answer = self.agents.get(pod.uid)
        return answer.since if isinstance(answer, Silence) else None

    def _named(self, uids: tuple[str, ...]) -> tuple[Pod | None, ...]:
        by_uid = {pod.uid: pod for pod in self.own}
        return tuple(by_uid.get(uid) for uid in uids)


def parse_status(status: Any) -> ModelScalingStatus:  # noqa: ANN401 - whatever is in the object
    """Return an object's status; an empty one where it is not one of ours."""
    try:
        return ModelScalingStatus.model_validate(status or {})
    except ValidationError:
        return ModelScalingStatus()


def parse_pod(body: Mapping[str, Any]) -> Pod | None:
    """Return a pod as the API server describes it; None if its labels are not an operator's."""
    metadata, spec, status = body["metadata"], body["spec"], body.get("status") or {}
    labels = metadata.get("labels") or {}
    index = labels.get(INDEX_LABEL, "")
    if not index.isdecimal():
        return None
    owners = metadata.get("ownerReferences") or []
    container = _container_status(status)
    containers: list[Json] = spec["containers"]
    trainer = next((c for c in containers if c["name"] == TRAINER_CONTAINER), {})
    deletion = metadata.get("deletionTimestamp")
    return Pod(
        name=metadata["name"],
        uid=metadata["uid"],
        index=int(index),
        owner_uid=next((owner["uid"] for owner in owners if owner.get("controller")), ""),
        revision=labels.get(REVISION_LABEL, ""),
        image=trainer.get("image", ""),
        processes=_processes(trainer),
        phase=PodPhase(status.get("phase") or PodPhase.PENDING),
        created=datetime.fromisoformat(metadata["creationTimestamp"]),
        node=spec.get("nodeName") or "",
        address=status.get("podIP") or None,
        deletion_deadline=datetime.fromisoformat(deletion) if deletion else None,
        disruption=_disruption(status),
        exit=_exit(container, status),
        is_ready=any(
            condition["type"] == "Ready" and condition["status"] == "True"
            for condition in status.get("conditions") or []
        ),
        obstacle=_obstacle(metadata["name"], status),
        is_spare=labels.get(ROLE_LABEL) == SPARE,
    )


def _processes(trainer: Json) -> int:
    environment = {entry["name"]: entry.get("value", "") for entry in trainer.get("env") or []}
    number = environment.get(AgentEnvironment.PROCESSES, "")
    return int(number) if number.isdecimal() else 1


def _container_status(status: Json) -> Json:
    statuses = status.get("containerStatuses") or []
    return next((s for s in statuses if s["name"] == TRAINER_CONTAINER), {})


def _exit(container: Json, status: Json) -> Exit | None:
    terminated = (container.get("state") or {}).get("terminated")
    if terminated is None:
        if status.get("phase") != PodPhase.FAILED:
            return None
        # The kubelet refused it, or its container never started.
        reason = status.get("reason") or "Failed"
        text = status.get("message") or ""
        return Exit(code=-1, reason=reason, report=None, text=text, finished=None)
    text = terminated.get("message") or ""
    finished = terminated.get("finishedAt")
    return Exit(
        code=terminated["exitCode"],
        reason=terminated.get("reason") or "",
        report=_report(text),
        text=text,
        finished=datetime.fromisoformat(finished) if finished else None,
    )


def _report(text: str) -> TerminationReport | None:
    try:
        return TerminationReport.model_validate_json(text)
    except ValidationError:
        return None


def _disruption(status: Json) -> str | None:
    for condition in status.get("conditions") or []:
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return condition.get("message") or condition.get("reason") or "disrupted"
    # The kubelet's own evictions and shutdowns of older releases.
    if status.get("reason") in {"Evicted", "NodeShutdown", "Terminated", "NodeLost", "Shutdown"}:
        return status.get("message") or str(status["reason"])
    return None


def _obstacle(name: str, status: Json) -> Obstacle | None:
    if status.get("phase", PodPhase.PENDING) != PodPhase.PENDING:
        return None
    statuses = [
        *(status.get("initContainerStatuses") or []),
        *(status.get("containerStatuses") or []),
    ]
    for container in statuses:
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason", "")
        if reason and reason not in {"ContainerCreating", "PodInitializing"}:
            return Obstacle(
                reason=Reason.POD_CANNOT_START,
                message=f"pod {name}: {reason}: {waiting.get('message') or 'no message'}",
            )
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return Obstacle(
                reason=Reason.UNSCHEDULABLE,
                message=(
                    f"pod {name} is not scheduled: "
                    f"{condition.get('message') or condition.get('reason')}"
                ),
            )
    return None

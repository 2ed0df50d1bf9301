"""A small world in memory for decisions: pods that start, agents that obey, and faults.

It carries out the actions as a cluster would, one `tick` at a time, and checks after each what
must always hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from modelscaling.api.status import ModelScalingStatus
from modelscaling.exit_code import ExitCode
from modelscaling.protocol import (
    AgentState,
    AgentStatus,
    Failure,
    Progress,
    StopMode,
    TerminationReport,
)
from modelscaling_operator.action import (
    Assign,
    CreatePods,
    DeletePod,
    DeleteRun,
    Stop,
)
from modelscaling_operator.decision import Policy, decide
from modelscaling_operator.identity import RunIdentity
from modelscaling_operator.observation import (
    Exit,
    Observation,
    Pod,
    PodPhase,
    Pulse,
    Silence,
    next_pulse,
    parse_status,
)
from modelscaling_operator.progress import newest_progress
from modelscaling_operator.wish import Rejection, Wish, resolve_wish
from tests.shared.spec import make_spec

if TYPE_CHECKING:
    from modelscaling_operator.action import Action
    from modelscaling_operator.draft import Decision

RUN = RunIdentity(namespace="research", name="tiny", uid="run-uid")
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = Policy(trainer_image="trainer:1", poll_s=2)
TOTAL_STEPS = 125
"""64k tokens in batches of 8 samples of 64 tokens."""


def make_pod(index: int = 0, **changes: Any) -> Pod:
    """Return a running pod of the run."""
    values: dict[str, Any] = {
        "name": RUN.pod_name(index),
        "uid": f"pod-{index}",
        "index": index,
        "owner_uid": RUN.uid,
        "revision": "",
        "image": "trainer:1",
        "phase": PodPhase.RUNNING,
        "address": f"10.0.0.{index}",
    }
    return Pod(**{**values, **changes})


def make_progress(step: int, **changes: Any) -> Progress:
    values: dict[str, Any] = {
        "step": step,
        "total_steps": TOTAL_STEPS,
        "tokens": step * 512,
        "sample_digest": f"digest-{step}",
    }
    return Progress(**{**values, **changes})


def make_exit(code: int, **changes: Any) -> Exit:
    values: dict[str, Any] = {"reason": "Error", "report": None, "text": "", "finished": BEGIN}
    return Exit(code=code, **{**values, **changes})


def make_failure(reason: str = "GroupLost", code: ExitCode = ExitCode.CRASHED) -> Failure:
    return Failure(exit_code=code, reason=reason, message="A peer was lost.")


@dataclass(slots=True)
class World:
    """One run and its cluster. `spec` may be replaced at any time, as by `kubectl edit`."""

    spec: dict[str, Any]
    status: ModelScalingStatus = field(default_factory=ModelScalingStatus)
    generation: int = 1
    now: datetime = BEGIN
    pods: dict[str, Pod] = field(default_factory=dict)
    agents: dict[str, AgentStatus] = field(default_factory=dict)
    step: int = 0
    deleted: bool = False
    pulse: Pulse | None = None
    births: int = 0
    actions: list[Action] = field(default_factory=list)
    """What the last tick did."""
    _resolved: tuple[int, Wish | Rejection] | None = None

    def edit(self, **changes: Any) -> None:
        """Change the spec as `make_spec` does."""
        self.spec = make_spec(**changes)
        self.generation += 1

    def observe(self) -> Observation:
        agents: dict[str, AgentStatus | Silence] = {
            pod.uid: self.agents.get(pod.uid) or Silence(since=self.now, message="refused")
            for pod in self.pods.values()
            if pod.live
        }
        seen = Observation(
            run=RUN,
            generation=self.generation,
            status=self.status,
            pods=tuple(self.pods.values()),
            agents=agents,
        )
        progress = newest_progress(seen)
        if progress is not None and self.status.group is not None:
            self.pulse = next_pulse(
                self.pulse,
                generation=self.status.group.generation,
                step=progress.step,
                now=self.now,
            )
        return replace(seen, pulse=self.pulse)

    def decide(self) -> Decision:
        return self.decide_about(self.observe())

    def decide_about(self, seen: Observation) -> Decision:
        return decide(self._wish, seen, self.now, POLICY)

    def tick(self, *, seconds: float = 1, write: bool = True, act: bool = True) -> Decision:
        """Let the operator look once; `write` and `act` False are an operator that died there."""
        decision = self.decide()
        before = self._number
        if write:
            # Through JSON, as over the API server.
            content = decision.status.model_dump(mode="json", by_alias=True, exclude_none=True)
            self.status = parse_status(content)
            assert self.status == decision.status
        assert self._number >= before, "the group's number fell"
        self.actions = list(decision.actions) if write and act else []
        for action in self.actions:
            self._carry_out(action)
        self._live_on()
        self.now += timedelta(seconds=seconds)
        return decision

    def run_until_quiet(self, ticks: int = 200) -> None:
        """Tick until nothing is done any more."""
        quiet = 0
        for _ in range(ticks):
            self.tick()
            quiet = 0 if self.actions else quiet + 1
            if quiet > 15:
                return
        raise AssertionError(f"never quiet; the last actions: {self.actions}")

    def crash(self, index: int, code: int = ExitCode.CRASHED, **changes: Any) -> None:
        """End a pod by its own fault; the rest of its group notices."""
        pod = self.pods[RUN.pod_name(index)]
        self._end(pod, code, **changes)
        self.break_group()

    def break_group(self) -> None:
        """Let every agent of the present group notice that it broke."""
        for uid, agent in self.agents.items():
            if agent.state in {AgentState.TRAINING, AgentState.FORMING}:
                self.agents[uid] = agent.model_copy(
                    update={"state": AgentState.WARM, "failure": make_failure()}
                )

    def vanish(self, index: int) -> None:
        """Take a pod away without a word."""
        pod = self.pods.pop(RUN.pod_name(index))
        self.agents.pop(pod.uid, None)
        self.break_group()

    def states(self) -> list[str]:
        return [self.agents[pod.uid].state for pod in self.live_pods()]

    def live_pods(self) -> list[Pod]:
        return sorted((p for p in self.pods.values() if p.live), key=lambda pod: pod.index)

    @property
    def _number(self) -> int:
        return self.status.group.generation if self.status.group else 0

    @property
    def _wish(self) -> Wish | Rejection:
        if self._resolved is None or self._resolved[0] != self.generation:
            self._resolved = (self.generation, resolve_wish(RUN, self.spec))
        return self._resolved[1]

    def _carry_out(self, action: Action) -> None:
        match action:
            case CreatePods(indexes=indexes, image=image):
                for index in indexes:
                    self._create(index, image)
            case DeletePod(pod=pod):
                present = self.pods.get(pod.name)
                if present is not None and present.uid == pod.uid:
                    del self.pods[pod.name]
                    agent = self.agents.pop(pod.uid, None)
                    if agent is not None and agent.generation == self._number:
                        self.break_group()
            case Assign():
                self._assign(action)
            case Stop(pod=pod, mode=mode):
                code = ExitCode.DONE if mode is StopMode.RELEASE else ExitCode.INTERRUPTED
                self._end(pod, code)
            case DeleteRun():
                self.deleted = True

    def _assign(self, action: Assign) -> None:
        for pod in action.pods:
            agent = self.agents.get(pod.uid)
            if agent is None or agent.generation >= action.assignment.generation:
                continue
            self.agents[pod.uid] = agent.model_copy(
                update={
                    "state": AgentState.FORMING,
                    "generation": action.assignment.generation,
                    "assignment_digest": action.assignment.digest(),
                    "failure": None,
                }
            )

    def _create(self, index: int, image: str) -> None:
        name = RUN.pod_name(index)
        assert name not in self.pods, "a second pod of an index"
        wish = self._wish
        assert isinstance(wish, Wish)
        self.births += 1
        self.pods[name] = make_pod(
            index,
            uid=f"pod-{index}-{self.births}",
            revision=wish.revision,
            image=image,
            phase=PodPhase.PENDING,
            address=None,
        )

    def _end(self, pod: Pod, code: int, **changes: Any) -> None:
        agent = self.agents.pop(pod.uid, None)
        report = TerminationReport(
            generation=agent.generation if agent else 0,
            progress=agent.progress if agent else None,
            failure=changes.pop("failure", None),
        )
        self.pods[pod.name] = replace(
            self.pods[pod.name],
            phase=PodPhase.FAILED if code else PodPhase.SUCCEEDED,
            exit=make_exit(code, report=report, finished=self.now),
            **changes,
        )

    def _live_on(self) -> None:
        """Let a second pass: pods start, agents warm up, groups form and train."""
        for name, pod in self.pods.items():
            if pod.phase is PodPhase.PENDING and pod.obstacle is None:
                self.pods[name] = replace(
                    pod, phase=PodPhase.RUNNING, address=f"10.0.{self.births}.{pod.index}"
                )
            elif pod.live and pod.uid not in self.agents:
                self.agents[pod.uid] = AgentStatus(
                    run_uid=RUN.uid, index=pod.index, state=AgentState.WARM
                )
        self._train()

    def _train(self) -> None:
        group = self.status.group
        members = [pod for pod in self.live_pods() if pod.uid in self.agents]
        members = [
            pod
            for pod in members
            if group is not None and self.agents[pod.uid].generation == group.generation
        ]
        able = {AgentState.FORMING, AgentState.TRAINING}
        if group is None or len(members) < group.members:
            return
        if any(self.agents[pod.uid].state not in able for pod in members):
            return
        self.step = min(self.step + 1, TOTAL_STEPS)
        for rank, pod in enumerate(members):
            progress = make_progress(self.step) if rank == 0 else None
            self.agents[pod.uid] = self.agents[pod.uid].model_copy(
                update={"state": AgentState.TRAINING, "progress": progress}
            )
        if self.step == TOTAL_STEPS:
            for pod in members:
                self._end(pod, ExitCode.DONE)

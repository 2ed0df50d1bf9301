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
    GRACE_PERIOD_S,
    AgentState,
    AgentStatus,
    Failure,
    StopMode,
)
from modelscaling_operator.accepted_spec import accepted_or_before
from modelscaling_operator.action import (
    Assign,
    CreatePods,
    DeletePod,
    DeleteRun,
    LabelPod,
    Stop,
)
from modelscaling_operator.decision import Policy, decide
from modelscaling_operator.growing import note_rejection, trained_so_far
from modelscaling_operator.identity import RunIdentity
from modelscaling_operator.observation import (
    Exit,
    Observation,
    Pod,
    PodPhase,
    Silence,
    SourceRun,
    parse_status,
)
from modelscaling_operator.wish import Rejection, Wish, resolve_wish
from tests.operator.little_agent import LittleAgent
from tests.operator.little_group import TOTAL_STEPS, LittleGroup, make_progress
from tests.shared.spec import make_spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelscaling_operator.action import Action
    from modelscaling_operator.draft import Decision

__all__ = [
    "BEGIN",
    "POLICY",
    "RUN",
    "TOTAL_STEPS",
    "World",
    "make_exit",
    "make_failure",
    "make_pod",
    "make_progress",
]

RUN = RunIdentity(namespace="research", name="tiny", uid="run-uid")
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = Policy(trainer_image="trainer:1", poll_s=2)
QUESTION_S = 1
"""Seconds after which the operator gives a question up."""
NODE_CONTROLLER_S = 40
"""Seconds after which Kubernetes itself deletes the pods of a node that is gone."""
LEAVE_TIMEOUT_S = 35
"""Seconds after which a pod that was told to end saves, whether a group came without it or not."""


def make_pod(index: int = 0, **changes: Any) -> Pod:
    """Return a running pod of the run."""
    values: dict[str, Any] = {
        "name": RUN.pod_name(index),
        "uid": f"pod-{index}",
        "index": index,
        "owner_uid": RUN.uid,
        "revision": "",
        "image": "trainer:1",
        "processes": 1,
        "phase": PodPhase.RUNNING,
        "created": BEGIN,
        "address": f"10.0.0.{index}",
    }
    return Pod(**{**values, **changes})


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
    version: int = 1
    """The object's resourceVersion."""
    now: datetime = BEGIN
    pods: dict[str, Pod] = field(default_factory=dict)
    agents: dict[str, LittleAgent] = field(default_factory=dict)
    group: LittleGroup = field(default_factory=LittleGroup)
    deleted: bool = False
    is_being_deleted: bool = False
    source: SourceRun | None = None
    """The run that it is to begin with, while it is awaited."""
    births: int = 0
    room: int | None = None
    """How many pods the cluster has room for; None for any number."""
    silent: dict[str, datetime] = field(default_factory=dict)
    """Pods (by UID) that nobody hears, and since when."""
    dead: set[str] = field(default_factory=set)
    """Those of them whose kubelet is gone as well."""
    dying: set[str] = field(default_factory=set)
    """Pods (by UID) whose processes are gone, which their kubelets have not told yet."""
    severed: set[frozenset[str]] = field(default_factory=set)
    """Pairs of pods (by UID) that do not reach each other."""
    actions: list[Action] = field(default_factory=list)
    """What the last tick did."""
    deaf: set[str] = field(default_factory=set)
    """Pods (by UID) that the next message does not reach."""
    _resolved: tuple[int, Wish | Rejection] | None = None

    # What the operator sees and does

    def edit(self, **changes: Any) -> None:
        """Change the spec as `make_spec` does."""
        self.spec = make_spec(**changes)
        self.generation += 1
        self.version += 1

    def observe(self) -> Observation:
        return Observation(
            run=RUN,
            generation=self.generation,
            status=self.status,
            pods=tuple(self.pods.values()),
            source=self.source,
            agents={pod.uid: self.answer(pod) for pod in self.pods.values() if pod.has_agent},
        )

    def answer(self, pod: Pod) -> AgentStatus | Silence:
        """Return what the operator hears of a pod."""
        since = self.silent.get(pod.uid)
        agent = self.agents.get(pod.uid)
        if since is not None or agent is None:
            return Silence(since=since or self.now, message="silence", is_refusal=since is None)
        return agent.status()

    def decide(self) -> Decision:
        return self.decide_about(self.observe())

    def decide_about(self, seen: Observation) -> Decision:
        seen = note_rejection(seen)
        wish = accepted_or_before(self.wish, RUN, seen.status)
        return decide(wish, seen, self.now, POLICY)

    def tick(
        self, *, seconds: float = 1, write: bool = True, act: bool = True, actions: int = 1000
    ) -> Decision:
        """Let the operator look once; `write` and `act` False are an operator that died there,
        `actions` is after how many of them it did.
        """
        decision = self.decide()
        if write:
            self.take_status(decision.status)
        self.actions = list(decision.actions)[:actions] if write and act else []
        for action in self.actions:
            self.carry_out(action)
        self.live_on()
        self.now += timedelta(seconds=seconds)
        return decision

    def take_status(self, status: ModelScalingStatus) -> None:
        """Keep a status, as over the API server."""
        before = self.status.group.generation if self.status.group else 0
        content = status.model_dump(mode="json", by_alias=True, exclude_none=True)
        self.status = parse_status(content)
        assert self.status == status
        after = self.status.group.generation if self.status.group else 0
        assert after >= before, "the group's number fell"

    def run_until_quiet(self, ticks: int = 200) -> None:
        """Tick until nothing is done any more."""
        quiet = 0
        for _ in range(ticks):
            self.tick()
            quiet = 0 if self.actions else quiet + 1
            if quiet > 15:
                return
        raise AssertionError(f"never quiet; the last actions: {self.actions}")

    @property
    def wish(self) -> Wish | Rejection:
        trained = trained_so_far(self.status)
        if self._resolved is not None and self._resolved[0] == self.generation:
            known = self._resolved[1]
            if isinstance(known, Wish) and known.is_current(trained):
                return known
        self._resolved = (self.generation, resolve_wish(RUN, self.spec, trained))
        return self._resolved[1]

    # What happens to it

    def crash(self, index: int, code: int = ExitCode.CRASHED, **changes: Any) -> None:
        """End a pod by its own fault; the rest of its group notices."""
        self.end(self.pods[RUN.pod_name(index)], code, **changes)
        self._notice_losses()

    def kill(self, index: int) -> None:
        """Take a pod's processes away; its kubelet tells later, see `crash`."""
        uid = self.pods[RUN.pod_name(index)].uid
        del self.agents[uid]
        self.dying.add(uid)
        self._notice_losses()

    def crash_worker(self, index: int, reason: str = "WorkerDied") -> None:
        """Let a worker die; its agent replaces it, and the same members meet again."""
        agent = self.agent(index)
        agent.worker_failures += 1
        agent.failure = make_failure(reason)
        for other in self.agents.values():
            if other.generation == agent.generation and other.state is AgentState.TRAINING:
                other.state = AgentState.FORMING

    def give_up(self) -> None:
        """Let every agent of the present group give it up, after attempts enough."""
        for agent in self.agents.values():
            if agent.is_in_group:
                agent.state = AgentState.WARM
                agent.failure = make_failure()

    def vanish(self, index: int) -> None:
        """Take a pod away without a word, as by a forced deletion."""
        pod = self.pods.pop(RUN.pod_name(index))
        self.agents.pop(pod.uid, None)
        self._notice_losses()

    def lose_node(self, index: int) -> None:
        """Take a pod's machine away: nobody hears it, and no kubelet speaks for it."""
        pod = self.pods[RUN.pod_name(index)]
        self.silent[pod.uid] = self.now - timedelta(seconds=QUESTION_S)
        self.dead.add(pod.uid)
        self._notice_losses()

    def cut_off(self, index: int) -> None:
        """Keep the operator from hearing a pod that its peers do hear."""
        self.silent[self.pods[RUN.pod_name(index)].uid] = self.now

    def sever(self, index: int, other: int) -> None:
        """Keep two pods from reaching each other; the operator hears both."""
        pods = (self.pods[RUN.pod_name(index)], self.pods[RUN.pod_name(other)])
        self.severed.add(frozenset(pod.uid for pod in pods))

    def drain(self, index: int) -> None:
        """Have a pod deleted or evicted through the API."""
        pod = self.pods[RUN.pod_name(index)]
        if pod.phase is PodPhase.PENDING or pod.ended:
            del self.pods[pod.name]
            return
        if pod.deletion_deadline is None:
            deadline = self.now + timedelta(seconds=GRACE_PERIOD_S)
            self.pods[pod.name] = replace(pod, deletion_deadline=deadline)
            agent = self.agents.get(pod.uid)
            if agent is not None:
                agent.is_leaving = True

    def end(self, pod: Pod, code: int, **changes: Any) -> None:
        """End a pod's containers; one that is being deleted then goes."""
        agent = self.agents.pop(pod.uid, None)
        failure = changes.pop("failure", None)
        present = self.pods[pod.name]
        if present.deletion_deadline is not None:
            del self.pods[pod.name]
            return
        self.pods[pod.name] = replace(
            present,
            phase=PodPhase.FAILED if code else PodPhase.SUCCEEDED,
            exit=make_exit(
                code, report=agent.report(failure) if agent else None, finished=self.now
            ),
            **changes,
        )

    # What can be read of it

    @property
    def step(self) -> int:
        return self.group.step

    def agent(self, index: int) -> LittleAgent:
        return self.agents[self.pods[RUN.pod_name(index)].uid]

    def answers(self, index: int) -> bool:
        """Whether the operator hears a pod."""
        return isinstance(self.answer(self.pods[RUN.pod_name(index)]), AgentStatus)

    def states(self) -> list[str]:
        return [self.agents[pod.uid].state for pod in self.live_pods()]

    def live_pods(self) -> list[Pod]:
        return sorted((p for p in self.pods.values() if p.live), key=lambda pod: pod.index)

    def members(self) -> list[int]:
        """The indexes of the present group's pods by rank; -1 for one that is gone."""
        pods = self.observe().members
        return [pod.index if pod else -1 for pod in pods]

    # What it does by itself

    def carry_out(self, action: Action) -> None:  # noqa: C901 - one case for each action
        """Do what the operator asks of the API server and of agents."""
        match action:
            case CreatePods(indexes=indexes, image=image):
                for index in indexes:
                    self.create(index, image)
            case DeletePod(pod=pod, grace_s=grace_s):
                self.delete(pod, force=grace_s == 0)
            case LabelPod(pod=pod, is_spare=is_spare):
                self.label(pod, is_spare=is_spare)
            case Assign(assignment=assignment, pods=pods):
                for pod in pods:
                    if self._reaches(pod):
                        self.agents[pod.uid].assign(assignment)
            case Stop(pod=pod, mode=mode, generation=generation):
                if self._reaches(pod):
                    self.agents[pod.uid].stop(generation, mode)
            case DeleteRun():
                self.deleted = True

    def create(self, index: int, image: str) -> None:
        name = RUN.pod_name(index)
        assert name not in self.pods, "a second pod of an index"
        wish = accepted_or_before(self.wish, RUN, self.status)
        assert isinstance(wish, Wish)
        self.births += 1
        self.pods[name] = make_pod(
            index,
            uid=f"pod-{index}-{self.births}",
            revision=wish.revision,
            image=image,
            processes=wish.spec.processes_per_replica,
            phase=PodPhase.PENDING,
            created=self.now.replace(microsecond=0),
            address=None,
        )

    def delete(self, pod: Pod, *, force: bool) -> None:
        present = self.pods.get(pod.name)
        if present is None or present.uid != pod.uid:
            return
        if not force:
            self.drain(pod.index)
            return
        del self.pods[pod.name]
        self.agents.pop(pod.uid, None)
        self._notice_losses()

    def label(self, pod: Pod, *, is_spare: bool) -> None:
        present = self.pods.get(pod.name)
        if present is not None and present.uid == pod.uid:
            self.pods[pod.name] = replace(present, is_spare=is_spare)

    def live_on(self) -> None:
        """Let a second pass: pods start and end, agents warm up, groups form and train."""
        for pod in list(self.pods.values()):
            self._live_on_pod(pod)
        self._notice_losses()
        self._notice_severed()
        for index, code in self.group.train(self._heard(), self.now.timestamp()):
            self.end(self.pods[RUN.pod_name(index)], code)
        self.deaf.clear()

    def _live_on_pod(self, pod: Pod) -> None:
        if pod.uid in self.dead:
            if self.now > self.silent[pod.uid] + timedelta(seconds=NODE_CONTROLLER_S):
                self.drain(pod.index)
            return
        running = sum(p.phase is PodPhase.RUNNING for p in self.pods.values())
        has_room = self.room is None or running < self.room
        if pod.phase is PodPhase.PENDING and pod.obstacle is None and has_room:
            self.pods[pod.name] = replace(
                pod, phase=PodPhase.RUNNING, address=f"10.0.{self.births}.{pod.index}"
            )
        elif pod.live and pod.uid not in (self.agents.keys() | self.dying):
            self.agents[pod.uid] = LittleAgent(run_uid=RUN.uid, index=pod.index)
        elif pod.has_agent and pod.uid in self.agents:
            self._live_on_agent(pod, self.agents[pod.uid])
        elif pod.deletion_deadline is not None:
            del self.pods[pod.name]

    def _live_on_agent(self, pod: Pod, agent: LittleAgent) -> None:
        if agent.stop_mode is not None:
            if agent.saves:
                self.group.save(agent)
            is_done = agent.stop_mode is StopMode.RELEASE
            self.end(pod, ExitCode.DONE if is_done else ExitCode.INTERRUPTED)
            return
        if not agent.is_leaving:
            return
        assert pod.deletion_deadline is not None
        told = pod.deletion_deadline - timedelta(seconds=GRACE_PERIOD_S)
        is_overdue = self.now >= told + timedelta(seconds=LEAVE_TIMEOUT_S)
        if not agent.is_in_group or is_overdue:
            self._save_with(agent)
            self.end(pod, ExitCode.INTERRUPTED)

    def _save_with(self, agent: LittleAgent) -> None:
        """All of a group stop at the step at which one of them saves and ends."""
        self.group.saved = self.group.step
        for other in self.agents.values():
            if other.is_in_group and other.generation == agent.generation:
                other.state = AgentState.WARM

    def _reaches(self, pod: Pod) -> bool:
        return pod.uid in self.agents and pod.uid not in (self.silent.keys() | self.deaf)

    def _heard(self) -> dict[int, LittleAgent]:
        """The agents that hear each other, by index; the operator may hear fewer."""
        return {
            pod.index: self.agents[pod.uid]
            for pod in self.pods.values()
            if pod.uid in self.agents and pod.uid not in self.dead
        }

    def _notice_losses(self) -> None:
        """Let agents notice which members of their groups are gone."""
        heard = self._heard()
        for agent in heard.values():
            if agent.assignment is None or not agent.is_in_group:
                continue
            gone = tuple(self._gone_of(agent, heard))
            agent.lost = gone
            if gone and agent.state is AgentState.TRAINING:
                agent.state = AgentState.FORMING

    def _notice_severed(self) -> None:
        """Let agents notice which members of their groups they do not reach."""
        uids = {pod.index: pod.uid for pod in self.pods.values()}
        for agent in self._heard().values():
            told = agent.assignment if agent.is_in_group else None
            others = [member.index for member in told.members] if told else []
            agent.unreachable = tuple(
                other
                for other in others
                if frozenset({uids[agent.index], uids.get(other, "")}) in self.severed
            )

    def _gone_of(self, agent: LittleAgent, heard: dict[int, LittleAgent]) -> Iterator[int]:
        assert agent.assignment is not None
        places = (*agent.assignment.members, *agent.assignment.leaving)
        if agent.generation in self.group.handed_over:
            places = agent.assignment.members
        for member in places:
            other = heard.get(member.index)
            if other is None or not self._is_same(member.index, member.address):
                yield member.index

    def _is_same(self, index: int, address: str) -> bool:
        pod = self.pods.get(RUN.pod_name(index))
        return pod is not None and pod.address == address

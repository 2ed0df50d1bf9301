"""All that an agent knows, as one frozen value, and how each thing that happens changes it.

Nothing here does I/O. What the agent does next is a function of the facts (`decision.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from modelscaling.exit_code import ExitCode
from modelscaling.protocol import AgentState, Failure
from modelscaling_trainer.worker_protocol import (
    Ask,
    FiguresTaken,
    GroupEnded,
    GroupLost,
    Join,
    PhaseBegan,
    ProgressMade,
    StoreOpened,
    Warm,
    WorkerFailed,
)

if TYPE_CHECKING:
    from modelscaling.configuration import RunConfiguration
    from modelscaling.protocol import LateWorker, Progress, StopMode
    from modelscaling_trainer.agent.placement import Placement
    from modelscaling_trainer.request import Outcome, Request
    from modelscaling_trainer.worker_protocol import Command, Event

_FORMING_PHASES = frozenset({None, "Forming", "Loading"})


class WorkerState(StrEnum):
    """What a worker is doing."""

    STARTING = "Starting"
    IDLE = "Idle"
    BUSY = "Busy"
    """In a group, or on its way into one."""
    GONE = "Gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts:
    """One worker."""

    state: WorkerState = WorkerState.STARTING
    generation: int = 0
    """The newest group that it was told to join."""
    phase: str | None = None
    """What it does in that group."""
    asked: frozenset[Request] = frozenset()
    """What it was asked in that group."""
    outcome: Outcome | None = None
    """How that group ended, if it ended well."""
    configuration: RunConfiguration | None = None
    """What it trains in that group."""
    has_trained: bool = False
    """Whether it may hold steps that are saved nowhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that an agent knows. Times are the event loop's, in seconds."""

    workers: tuple[WorkerFacts, ...]
    generation: int = 0
    """The newest number that was obeyed."""
    digest: str | None = None
    """The digest of that number's assignment."""
    placement: Placement | None = None
    """The place in the newest group."""
    is_given_up: bool = False
    """Whether that group cannot be formed; it waits for the next."""
    store_port: int | None = None
    """Where that group meets, once it is known."""
    stop_mode: StopMode | None = None
    deadline: float | None = None
    """When what was asked of the workers must be done."""
    progress: Progress | None = None
    """What rank 0 said last; None where rank 0 is in another pod."""
    failure: Failure | None = None
    is_failed: bool = False
    """Whether the failure ends the agent."""
    attempt: int = 0
    """Which attempt to form the newest group this is, as far as it is known; 0 before the
    first."""
    lost: frozenset[int] = frozenset()
    """Indexes of members whose agents have fallen silent."""
    late: tuple[LateWorker, ...] = ()
    """The pod's workers that do not come on."""

    def is_pending(self) -> bool:
        """Whether the newest group still has to be joined."""
        return (
            self.placement is not None
            and not self.is_given_up
            and any(worker.generation < self.generation for worker in self.workers)
        )

    def needs_store(self) -> bool:
        """Whether the leader has to be asked where the newest group meets."""
        return (
            self.is_pending()
            and not self.hosts_store()
            and self.store_port is None
            and not self.is_failed
            and not self.stop_mode
        )

    def is_warm(self) -> bool:
        """Whether all workers have warmed up."""
        return all(worker.state is not WorkerState.STARTING for worker in self.workers)

    def hosts_store(self) -> bool:
        """Whether rank 0 of the newest group is in this pod."""
        return self.placement is not None and self.placement.is_leader

    def state(self) -> AgentState:
        """Return what the agent is doing, as long as it has not ended."""
        if self.is_failed or self.stop_mode:
            return AgentState.STOPPING
        if not self.is_warm():
            return AgentState.STARTING
        if self.is_pending():
            return AgentState.FORMING
        phases = {w.phase for w in self.workers if w.state is WorkerState.BUSY}
        if not phases:
            return AgentState.WARM
        return AgentState.FORMING if phases & _FORMING_PHASES else AgentState.TRAINING

    def obeying(self, placement: Placement, *, deadline: float) -> Facts:
        """Return the facts after a new assignment; the old group has until `deadline` to end."""
        return replace(
            self,
            generation=placement.assignment.generation,
            digest=placement.assignment.digest(),
            placement=placement,
            is_given_up=False,
            store_port=None,
            progress=self.progress if placement.is_leader else None,
            failure=None,
            deadline=deadline,
        )

    def stopping(self, mode: StopMode, *, generation: int, deadline: float) -> Facts:
        """Return the facts after an order to stop; a shorter deadline replaces a longer one."""
        return replace(
            self,
            generation=generation,
            digest=self.digest if generation == self.generation else None,
            stop_mode=mode,
            deadline=min(deadline, self.deadline)
            if self.stop_mode and self.deadline is not None
            else deadline,
        )

    def failing(self, failure: Failure, *, deadline: float) -> Facts:
        """Return the facts after something that ends the agent; the first cause stays."""
        if self.is_failed:
            return self
        return replace(self, failure=failure, is_failed=True, deadline=deadline)

    def knowing_store(self, *, generation: int, port: int) -> Facts:
        """Return the facts after the store of a group has become known."""
        return replace(self, store_port=port) if generation == self.generation else self

    def giving_up(self, *, generation: int, message: str) -> Facts:
        """Return the facts after a group has turned out not to come about."""
        if generation != self.generation:
            return self
        return replace(self, is_given_up=True, failure=_group_lost(message, rank=None))

    def told(self, local_rank: int, command: Command) -> Facts:
        """Return the facts after a command was sent to a worker."""
        worker = self.workers[local_rank]
        match command:
            case Join(generation=generation, configuration=configuration):
                worker = WorkerFacts(
                    state=WorkerState.BUSY,
                    generation=generation,
                    configuration=configuration,
                    has_trained=worker.has_trained,
                )
            case Ask(request=request):
                worker = replace(worker, asked=worker.asked | {request})
        return self._with_worker(local_rank, worker)

    def heard(self, local_rank: int, event: Event, *, failure_deadline: float) -> Facts:
        """Return the facts after a worker has said something."""
        facts = self._with_worker(local_rank, _worker_after(self.workers[local_rank], event))
        match event:
            case StoreOpened(generation=generation, port=port):
                return facts.knowing_store(generation=generation, port=port)
            case ProgressMade(progress=progress) if self.hosts_store():
                return replace(facts, progress=progress)
            case GroupLost(generation=generation, message=message):
                if generation == self.generation and not self.is_failed:
                    return replace(facts, failure=_group_lost(message, self._rank(local_rank)))
            case WorkerFailed(exit_code=exit_code, reason=reason, message=message):
                failure = Failure(
                    exit_code=exit_code,
                    reason=reason,
                    message=message,
                    rank=self._rank(local_rank),
                )
                return facts.failing(failure, deadline=failure_deadline)
        return facts

    def lost_worker(self, local_rank: int, *, message: str, deadline: float) -> Facts:
        """Return the facts after a worker has ended that was not told to."""
        gone = replace(self.workers[local_rank], state=WorkerState.GONE)
        failure = Failure(
            exit_code=ExitCode.CRASHED,
            reason="WorkerDied",
            message=message,
            rank=self._rank(local_rank),
        )
        return self._with_worker(local_rank, gone).failing(failure, deadline=deadline)

    def _rank(self, local_rank: int) -> int | None:
        """Return the worker's rank in the newest group, if it has joined that."""
        if self.placement is None or self.workers[local_rank].generation != self.generation:
            return None
        return self.placement.first_rank + local_rank

    def _with_worker(self, local_rank: int, worker: WorkerFacts) -> Facts:
        before, after = self.workers[:local_rank], self.workers[local_rank + 1 :]
        return replace(self, workers=(*before, worker, *after))


def _worker_after(worker: WorkerFacts, event: Event) -> WorkerFacts:
    """Return what is known of a worker after it has said something."""
    match event:
        case Warm():
            worker = replace(worker, state=WorkerState.IDLE)
        case PhaseBegan(phase=phase):
            worker = replace(worker, phase=phase)
        case ProgressMade() | FiguresTaken():
            worker = replace(worker, has_trained=True)
        case GroupEnded(outcome=outcome):
            worker = replace(worker, state=WorkerState.IDLE, phase=None, outcome=outcome)
        case GroupLost():
            worker = replace(worker, state=WorkerState.IDLE, phase=None)
        case WorkerFailed():
            worker = replace(worker, state=WorkerState.GONE)
        case StoreOpened():
            pass
    return worker


def _group_lost(message: str, rank: int | None) -> Failure:
    return Failure(exit_code=ExitCode.CRASHED, reason="GroupLost", message=message, rank=rank)

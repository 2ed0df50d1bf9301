"""All that an agent knows, as one frozen value, and how each thing that happens changes it.

Nothing here does I/O. What the agent does next is a function of the facts (`decision.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from modelscaling.exit_code import FATAL, ExitCode
from modelscaling.protocol import AgentState, Failure
from modelscaling_trainer.agent.back_off import back_off_s
from modelscaling_trainer.agent.worker_facts import FORMING_PHASES, WorkerFacts, WorkerState
from modelscaling_trainer.request import Outcome
from modelscaling_trainer.worker_protocol import (
    CHECKPOINT_FAILED,
    DataOpened,
    FiguresTaken,
    GroupLost,
    GrowthRejected,
    Join,
    PhaseBegan,
    ProgressMade,
    StoreOpened,
    Warm,
    WorkerFailed,
)

if TYPE_CHECKING:
    from modelscaling.protocol import (
        GrowthRejection,
        LateWorker,
        OpenedData,
        Progress,
        StopMode,
        StoreAddress,
    )
    from modelscaling_trainer.agent.placement import Placement
    from modelscaling_trainer.worker_protocol import Command, Event

FAILURE_GRACE_S = 5.0
"""From a failure that ends the agent until workers that are still saving are killed."""
_MAX_FAILED_STARTS = 3


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
    attempt: int = 0
    """Which attempt to form the newest group this is, as far as it is known; 0 before the
    first."""
    broken_attempt: int = 0
    """The last attempt of the newest group that is known to have failed; 0 while none has."""
    breaks: int = 0
    """How many attempts have failed since the last step that was not done before."""
    begin_at: float = 0.0
    """When the leader may begin the next attempt."""
    store_port: int | None = None
    """Where the attempt meets, once it is known."""
    with_leaving: bool = False
    """Whether the pods that leave are awaited in the attempt."""
    has_handed_over: bool = False
    """Whether the newest group has trained, and so has all that the pods that leave held."""
    is_released: bool = False
    """Whether the pod, which leaves, is no longer needed."""
    stop_mode: StopMode | None = None
    deadline: float | None = None
    """When what was asked of the workers must be done."""
    is_leaving: bool = False
    """Whether the pod has been told to end, and waits for a group without it."""
    leave_by: float | None = None
    """When it saves and ends if no such group has come."""
    end_by: float | None = None
    """When it must have ended."""
    data: OpenedData | None = None
    """What its workers have opened, as one of them has said last."""
    worker_failures: int = 0
    """How many workers have died, failed or been given up."""
    progress: Progress | None = None
    """What rank 0 said last; None where rank 0 is in another pod."""
    furthest_step: int = 0
    """The most steps that rank 0 has said were done."""
    failure: Failure | None = None
    growth_rejection: GrowthRejection | None = None
    """Why the newest group took the growth of its model back; it is not formed again then, as it
    would only do the same."""
    is_failed: bool = False
    """Whether the failure ends the agent."""
    lost: frozenset[int] = frozenset()
    """Indexes of members whose agents have fallen silent."""
    unreachable: frozenset[int] = frozenset()
    """Indexes of members that could not be reached for long, while the group does not come on."""
    late: tuple[LateWorker, ...] = ()
    """The pod's workers that do not come on."""

    # What follows from it

    @property
    def is_unsaved(self) -> bool:
        """Whether the agent was told to stop, and its workers hold what could not be saved."""
        return (
            self.stop_mode is not None
            and not self.is_failed
            and self.failure is not None
            and self.failure.reason == CHECKPOINT_FAILED
            and all(worker.may_hold_steps for worker in self.workers)
        )

    @property
    def awaited_attempt(self) -> int:
        """The attempt that the workers belong in; the leader may give it a higher number."""
        return max(self.attempt, self.broken_attempt + 1)

    def is_in_group(self) -> bool:
        """Whether the pod has a place in a group that is not given up."""
        return self.placement is not None and not self.is_given_up

    def has_to_join(self, worker: WorkerFacts) -> bool:
        """Whether a worker is not in the newest attempt yet."""
        return (worker.generation, worker.attempt) < (self.generation, self.awaited_attempt)

    def is_pending(self) -> bool:
        """Whether the newest group still has to be joined, for the first time or again."""
        return (
            self.is_in_group()
            and not self.is_released
            and self.growth_rejection is None
            and any(self.has_to_join(worker) for worker in self.workers)
        )

    def needs_store(self) -> bool:
        """Whether the leader has to be asked where the newest group meets."""
        return (
            self.is_pending()
            and not self.hosts_store()
            and self.store_port is None
            and not self.is_failed
            and (not self.stop_mode or self.is_unsaved)
        )

    def is_warm(self) -> bool:
        """Whether all workers have warmed up."""
        return not any(w.state in {WorkerState.STARTING, WorkerState.GONE} for w in self.workers)

    def hosts_store(self) -> bool:
        """Whether rank 0 of the newest group is in this pod."""
        return self.placement is not None and self.placement.is_leader

    def is_done_leaving(self) -> bool:
        """Whether the pod has handed over what it held, and its workers are out of the group."""
        is_released = self.is_released or any(
            worker.outcome is Outcome.RELEASED and worker.generation == self.generation
            for worker in self.workers
        )
        return is_released and not any(w.state is WorkerState.BUSY for w in self.workers)

    def state(self) -> AgentState:
        """Return what the agent is doing, as long as it has not ended."""
        if self.is_failed or self.stop_mode:
            return AgentState.STOPPING
        if self.is_pending() and (self.is_warm() or self.attempt):
            return AgentState.FORMING
        if not self.is_warm():
            return AgentState.STARTING
        phases = {w.phase for w in self.workers if w.state is WorkerState.BUSY}
        if not phases:
            return AgentState.WARM
        return AgentState.FORMING if phases & FORMING_PHASES else AgentState.TRAINING

    # What it is told from outside

    def obeying(self, placement: Placement, *, deadline: float) -> Facts:
        """Return the facts after a new assignment; the old group has until `deadline` to end."""
        return replace(
            self,
            generation=placement.assignment.generation,
            digest=placement.assignment.digest(),
            placement=placement,
            is_given_up=False,
            attempt=0,
            broken_attempt=0,
            begin_at=0.0,
            store_port=None,
            with_leaving=False,
            has_handed_over=False,
            is_released=False,
            progress=self.progress if placement.is_leader else None,
            failure=None,
            growth_rejection=None,
            deadline=deadline,
            # Of indexes, behind which there may be other pods by now.
            lost=frozenset(),
            unreachable=frozenset(),
        )

    def stopping(self, mode: StopMode, *, generation: int, deadline: float) -> Facts:
        """Return the facts after an order to stop; a shorter deadline replaces a longer one."""
        former = (self.deadline if self.stop_mode else None, self.end_by)
        return replace(
            self,
            generation=generation,
            digest=self.digest if generation == self.generation else None,
            stop_mode=mode,
            deadline=min([deadline, *(time for time in former if time is not None)]),
        )

    def leaving(self, *, leave_by: float, end_by: float) -> Facts:
        """Return the facts after the pod was told to end, with time left to be done without."""
        return replace(self, is_leaving=True, leave_by=leave_by, end_by=end_by)

    def failing(self, failure: Failure, *, deadline: float) -> Facts:
        """Return the facts after something that ends the agent; the first cause stays."""
        if self.is_failed:
            return self
        return replace(self, failure=failure, is_failed=True, deadline=deadline)

    def knowing_store(self, store: StoreAddress) -> Facts:
        """Return the facts after it has become known where an attempt meets."""
        if store.generation != self.generation or store.attempt < self.awaited_attempt:
            return self
        assert self.placement
        return replace(
            self,
            attempt=store.attempt,
            store_port=store.port,
            with_leaving=store.with_leaving,
            is_released=self.placement.is_leaver and not store.with_leaving,
        )

    def giving_up(self, *, generation: int, message: str) -> Facts:
        """Return the facts after a group has turned out not to come about."""
        if generation != self.generation:
            return self
        return replace(self, is_given_up=True, failure=_lost("GroupLost", message, rank=None))

    def breaking(self, generation: int, attempt: int, *, why: str, now: float) -> Facts:
        """Return the facts after an attempt has become known to have failed; the next one is
        held back the longer, the more have failed since the last step.
        """
        facts = replace(
            self,
            workers=tuple(
                replace(worker, broken_because=worker.broken_because or why)
                if worker.is_busy_in(generation, attempt)
                else worker
                for worker in self.workers
            ),
        )
        if generation != self.generation or attempt <= self.broken_attempt:
            return facts
        return replace(
            facts,
            broken_attempt=attempt,
            breaks=self.breaks + 1,
            begin_at=now + back_off_s(self.breaks),
            store_port=None if attempt >= self.attempt else self.store_port,
        )

    # What its workers say and are told

    def starting(self, local_rank: int) -> Facts:
        """Return the facts while a process is being started in a worker's place."""
        worker = replace(self.workers[local_rank], state=WorkerState.STARTING)
        return replace(self, workers=self._workers_with(local_rank, worker))

    def told(self, local_rank: int, command: Command) -> Facts:
        """Return the facts after a command was sent to a worker."""
        worker = self.workers[local_rank].told(command, placement=self.placement)
        facts = replace(self, workers=self._workers_with(local_rank, worker))
        match command:
            case Join(rank=0, attempt=attempt, leavers=leavers):
                return replace(facts, attempt=attempt, store_port=None, with_leaving=bool(leavers))
            case _:
                return facts

    def heard(self, local_rank: int, event: Event, *, now: float) -> Facts:
        """Return the facts after a worker has said something."""
        worker = self.workers[local_rank]
        if worker.is_old(event):
            return self
        match event:
            case WorkerFailed(exit_code=exit_code, reason=reason, message=message):
                failure = Failure(
                    exit_code=exit_code,
                    reason=reason,
                    message=message,
                    rank=self.rank_of(local_rank),
                )
                return self.losing_worker(local_rank, failure, now=now)
            case GroupLost(generation=generation, attempt=attempt, message=message):
                facts = replace(self, workers=self._workers_with(local_rank, worker.heard(event)))
                facts = facts.breaking(generation, attempt, why=message, now=now)
                if event.reason == CHECKPOINT_FAILED and facts.progress is not None:
                    told = {"checkpoint_failure": message}
                    facts = replace(facts, progress=facts.progress.model_copy(update=told))
                if generation == self.generation and self.failure is None:
                    lost = _lost(event.reason, message, rank=self.rank_of(local_rank))
                    return replace(facts, failure=lost)
                return facts
            case GrowthRejected(generation=generation, rejection=rejection):
                facts = replace(self, workers=self._workers_with(local_rank, worker.heard(event)))
                is_newest = generation == self.generation
                return replace(facts, growth_rejection=rejection) if is_newest else facts
        return replace(
            self._learning(event), workers=self._workers_with(local_rank, worker.heard(event))
        )

    def losing_worker(self, local_rank: int, failure: Failure, *, now: float) -> Facts:
        """Return the facts after a worker has ended or cannot go on. Another takes its place; the
        agent ends where that is pointless. One that only waits for its volume has not failed.
        """
        worker = self.workers[local_rank]
        if worker.state is WorkerState.GONE:
            return self
        gone = worker.after_loss()
        waits = worker.state is WorkerState.STARTING and failure.reason == CHECKPOINT_FAILED
        facts = replace(
            self,
            workers=self._workers_with(local_rank, gone),
            worker_failures=self.worker_failures if waits else self.worker_failures + 1,
            # A lost group is what follows when a worker is gone, not the cause.
            failure=self.failure if self.is_failed else failure,
        )
        if worker.state is WorkerState.BUSY:
            facts = facts.breaking(worker.generation, worker.attempt, why=failure.message, now=now)
        is_hopeless = gone.failed_starts >= _MAX_FAILED_STARTS and not waits
        if failure.exit_code in FATAL or is_hopeless:
            return facts.failing(failure, deadline=now + FAILURE_GRACE_S)
        return facts

    def rank_of(self, local_rank: int) -> int | None:
        """Return a worker's rank in the newest group, if it has joined that."""
        if self.placement is None or self.workers[local_rank].generation != self.generation:
            return None
        return self.placement.first_rank + local_rank

    def _learning(self, event: Event) -> Facts:
        """Return the facts after what a worker has said."""
        match event:
            case DataOpened(data=data):
                return replace(self, data=data)
            case Warm() if self.placement is None and not self.is_failed:
                return replace(self, failure=None)
        return self._learning_of_group(event)

    def _learning_of_group(self, event: Event) -> Facts:
        """Return the facts after what a worker has said of the group that it is in."""
        match event:
            case StoreOpened(port=port) if self._is_current(event):
                return replace(self, store_port=port)
            case PhaseBegan(phase=phase) if event.generation == self.generation:
                has_begun = phase not in FORMING_PHASES
                return replace(self, has_handed_over=self.has_handed_over or has_begun)
            case FiguresTaken():
                return self._after_step(event)
            case ProgressMade(progress=progress) if self.hosts_store():
                # One that is to end takes another step for each save that fails.
                is_new = progress.step > self.furthest_step and self.stop_mode is None
                return replace(
                    self._after_step(event),
                    progress=progress,
                    furthest_step=max(self.furthest_step, progress.step),
                    breaks=0 if is_new else self.breaks,
                )
        return self

    def _after_step(self, event: FiguresTaken | ProgressMade) -> Facts:
        if self.is_failed or not self._is_current(event):
            return self
        return replace(self, failure=None)

    def _is_current(self, event: StoreOpened | FiguresTaken | ProgressMade) -> bool:
        """Whether an event is about the newest attempt, and that goes on."""
        is_newest = (event.generation, event.attempt) == (self.generation, self.attempt)
        return is_newest and event.attempt > self.broken_attempt

    def _workers_with(self, local_rank: int, worker: WorkerFacts) -> tuple[WorkerFacts, ...]:
        return (*self.workers[:local_rank], worker, *self.workers[local_rank + 1 :])


def _lost(reason: str, message: str, *, rank: int | None) -> Failure:
    return Failure(exit_code=ExitCode.CRASHED, reason=reason, message=message, rank=rank)

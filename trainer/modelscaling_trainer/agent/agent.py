"""The agent itself: keeps the facts, starts the workers, carries out what `decide` returns.

It has no network of its own: `server.py` puts it on HTTP in a pod, and the local run calls it
directly.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from modelscaling.exit_code import ExitCode
from modelscaling.protocol import (
    AgentState,
    AgentStatus,
    Failure,
    StopMode,
    TerminationReport,
)
from modelscaling_trainer.agent.crew import Crew
from modelscaling_trainer.agent.decision import decide
from modelscaling_trainer.agent.facts import Facts
from modelscaling_trainer.agent.fencing import (
    Verdict,
    judge_assignment,
    judge_stop,
)
from modelscaling_trainer.agent.lateness import Pace, judge_lateness
from modelscaling_trainer.agent.openmp import available_cores, openmp_environment
from modelscaling_trainer.agent.reach import is_held_up
from modelscaling_trainer.agent.resolver import resolver_environment
from modelscaling_trainer.agent.store_lookup import StoreUnknownError
from modelscaling_trainer.agent.worker_facts import WorkerFacts
from modelscaling_trainer.agent.zygote_process import ZygoteEndedError
from modelscaling_trainer.worker_protocol import (
    FiguresTaken,
    GrowthRejected,
    Join,
    Prepare,
    ProgressMade,
    WorkerFailed,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from modelscaling.configuration import RunConfiguration
    from modelscaling.mesh import Mesh
    from modelscaling.protocol import (
        GroupAssignment,
        GrowthRejection,
        Member,
        Progress,
        StopRequest,
        StoreAddress,
    )
    from modelscaling_trainer.agent.fencing import Judgement
    from modelscaling_trainer.agent.settings import AgentSettings
    from modelscaling_trainer.figures import ProcessFigures
    from modelscaling_trainer.worker_protocol import Command, Event

    LookUpStore = Callable[[Member, int, int], Awaitable[StoreAddress]]
    """Asks the leader where a generation meets, in an attempt or in a later one."""

_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Who is told how training goes."""

    def on_progress(self, progress: Progress) -> None:
        """Take the run's numbers after a step; only where rank 0 is."""
        ...

    def on_figures(self, rank: int, figures: ProcessFigures) -> None:
        """Take one process' own numbers after a step."""
        ...

    def on_growth_rejected(self, rejection: GrowthRejection) -> None:
        """Take why the newest group took the growth of its model back, from each of its workers
        here until another group is assigned.
        """
        ...


class Agent:
    """One pod's agent."""

    def __init__(
        self,
        settings: AgentSettings,
        *,
        observer: Observer,
        look_up_store: LookUpStore,
        environment: Mapping[str, str],
    ) -> None:
        """Take what it needs; `environment` is what the workers inherit."""
        self._settings = settings
        self._observer = observer
        self._look_up_store = look_up_store
        self._environment = environment
        self._facts = Facts(workers=(WorkerFacts(),) * settings.identity.processes)
        self._paces = [Pace()] * settings.identity.processes
        """Of the workers, by local rank."""
        self._exit_code: ExitCode | None = None
        self._version = 0
        self._told = _without_times(self.status())
        self._changed = asyncio.Event()
        self._tasks: asyncio.TaskGroup
        self._crew: Crew
        self._lookup: _Lookup | None = None

    # What it is asked from outside

    @property
    def facts(self) -> Facts:
        """All that it knows now."""
        return self._facts

    @property
    def has_first_rank(self) -> bool:
        """Whether rank 0 of the newest group is one of its workers."""
        return self._facts.hosts_store()

    @property
    def parameters(self) -> int:
        """The number of parameters of the model that it trains."""
        return self._newest_configuration.model.parameters()

    @property
    def state(self) -> AgentState:
        """What it is doing."""
        return AgentState.ENDED if self._exit_code is not None else self._facts.state()

    @property
    def is_held_up(self) -> bool:
        """Whether its group does not come on, as if a member could not be reached."""
        return is_held_up(self._facts, self._paces, now=self._now())

    @property
    def version(self) -> int:
        """The version of its status, which grows with all but the run's progress."""
        return self._version

    def status(self) -> AgentStatus:
        """Return what it says of itself."""
        return AgentStatus(
            run_uid=self._settings.identity.run_uid,
            index=self._settings.identity.index,
            state=self.state,
            generation=self._facts.generation,
            assignment_digest=self._facts.digest,
            progress=self._facts.progress,
            failure=self._facts.failure,
            growth_rejection=self._facts.growth_rejection,
            version=self._version,
            attempt=self._facts.attempt,
            worker_failures=self._facts.worker_failures,
            is_leaving=self._facts.is_leaving,
            lost=tuple(sorted(self._facts.lost)),
            unreachable=tuple(sorted(self._facts.unreachable)),
            late=self._facts.late,
            data=self._facts.data,
        )

    def termination_report(self) -> TerminationReport:
        """Return what it leaves behind."""
        return TerminationReport(
            generation=self._facts.generation,
            progress=self._facts.progress,
            failure=self._facts.failure,
        )

    def assign(self, assignment: GroupAssignment) -> Judgement:
        """Form this group, if it is the newest."""
        judgement = judge_assignment(self._facts, assignment, self._settings.identity)
        if judgement.verdict is Verdict.OBEYED:
            assert judgement.placement
            deadline = self._now() + self._settings.reform_timeout_s
            self._update(self._facts.obeying(judgement.placement, deadline=deadline))
        return judgement

    def stop(self, request: StopRequest) -> Judgement:
        """Save at a step boundary and end."""
        judgement = judge_stop(self._facts, request, self._settings.identity)
        if judgement.verdict is Verdict.OBEYED:
            deadline = self._now() + self._settings.stop_timeout_s
            self._update(
                self._facts.stopping(request.mode, generation=request.generation, deadline=deadline)
            )
        return judgement

    def interrupt(self) -> None:
        """End within the time that a pod has after SIGTERM: as soon as the others have gone on
        without it, or else with a checkpoint. The second time do not wait for the others.
        """
        end_by = self._now() + self._settings.termination_grace_s
        if self._facts.is_in_group() and not self._facts.is_leaving:
            leave_by = self._now() + self._settings.leave_timeout_s
            self._update(self._facts.leaving(leave_by=leave_by, end_by=end_by))
        else:
            self._stop(end_by)

    def attempt_is_broken(self, generation: int, attempt: int, why: str) -> None:
        """Leave this attempt to form a group, if it is going on here: one of its members is gone,
        or has left it.
        """
        self._update(self._facts.breaking(generation, attempt, why=why, now=self._now()))

    def show_lost(self, lost: frozenset[int]) -> None:
        """Say that the agents of these pods, and of no others, have fallen silent."""
        if lost != self._facts.lost:
            self._update(replace(self._facts, lost=lost))

    def show_unreachable(self, unreachable: frozenset[int]) -> None:
        """Say that these pods, and no others, cannot be reached while the group is held up."""
        if unreachable != self._facts.unreachable:
            self._update(replace(self._facts, unreachable=unreachable))

    def give_up_worker(self, local_rank: int, message: str) -> None:
        """Replace a worker that hangs; the message says how that was seen."""
        self._lose_worker(local_rank, "WorkerHung", message)

    def end_at_once(self) -> None:
        """End the workers without saving."""
        for local_rank in range(self._settings.identity.processes):
            self._crew.kill(local_rank)

    async def wait_for(self, holds: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait until something holds, which is looked at after each change; False at the end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not holds():
                    await self._changed.wait()
        return holds()

    # Its life

    async def run(self) -> ExitCode:
        """Start the workers, do what is asked, and return the container's exit code."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._crew = Crew(self._environment_of_workers(), tasks=tasks)
            keepers = [
                tasks.create_task(self._keep_worker(local_rank))
                for local_rank in range(self._settings.identity.processes)
            ]
            exit_code = await self._act_until_end()
            self._end_with(exit_code)
            # Nothing is lost: they wait for a group, or had until the deadline. Their own clean-up
            # would take seconds.
            self._crew.end()
            for task in keepers:
                task.cancel()
            if self._lookup:
                self._lookup.task.cancel()
        return exit_code

    async def _act_until_end(self) -> ExitCode:
        while True:
            look_again_at = self._judge_lateness()
            changed = self._changed
            self._keep_lookup()
            decision = decide(self._facts, self._now(), most_breaks=self._settings.most_breaks)
            if decision.exit_code is not None:
                return decision.exit_code
            if decision.failure:
                self._update(self._facts.failing(decision.failure, deadline=self._now()))
            if decision.stops:
                self._stop(self._now() + self._settings.termination_grace_s)
            for local_rank, command in decision.commands:
                self._tell(local_rank, command)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(_earlier(decision.wake_at, look_again_at)):
                    await changed.wait()

    def _stop(self, deadline: float) -> None:
        self._update(
            self._facts.stopping(
                self._facts.stop_mode or StopMode.SUSPEND,
                generation=self._facts.generation,
                deadline=deadline,
            )
        )

    def _end_with(self, exit_code: ExitCode) -> None:
        _log.info("the agent ends", extra={"exit_code": exit_code.name})
        self._exit_code = exit_code
        self._update(self._facts)

    # Its workers

    async def _keep_worker(self, local_rank: int) -> None:
        """Have one process after another in a worker's place, until the agent ends."""
        while True:
            await self._run_worker(local_rank)
            if self._facts.is_failed or self._facts.stop_mode:
                return
            await asyncio.sleep(self._facts.workers[local_rank].start_delay_s)

    async def _run_worker(self, local_rank: int) -> None:
        """Have a process in a worker's place from its start to its end."""
        self._update(self._facts.starting(local_rank))
        try:
            worker = await self._crew.start(local_rank, mesh=self._newest_mesh)
        except ZygoteEndedError as error:
            self._lose_worker(local_rank, "WorkerDied", f"worker {local_rank}: {error}")
            return
        self._tell(local_rank, self._preparation(local_rank))
        code = await worker.run(lambda event: self._take_in(local_rank, event))
        message = f"{worker.label} {_describe_exit(code)}: {worker.last_lines}"
        self._lose_worker(local_rank, "WorkerDied", message)

    def _environment_of_workers(self) -> Mapping[str, str]:
        given = self._environment
        return {
            **given,
            **resolver_environment(given),
            **openmp_environment(
                given,
                cores=available_cores(),
                processes=self._settings.identity.processes,
                shares_machine=self._settings.shares_machine,
            ),
        }

    def _preparation(self, local_rank: int) -> Prepare:
        return Prepare(
            configuration=self._newest_configuration,
            local_rank=local_rank,
            scratch=self._settings.scratch,
            checkpoint_directory=self._settings.checkpoint_directory,
            is_newcomer=self._facts.placement is None,
            mesh=self._newest_mesh,
            stop_at_step=self._settings.stop_at_step,
        )

    @property
    def _newest_configuration(self) -> RunConfiguration:
        placement = self._facts.placement
        return placement.assignment.configuration if placement else self._settings.configuration

    @property
    def _newest_mesh(self) -> Mesh | None:
        placement = self._facts.placement
        return placement.assignment.mesh if placement else self._settings.mesh

    def _judge_lateness(self) -> float | None:
        """Say which workers are late, give up those that hang; return when to judge again."""
        judged = judge_lateness(self._paces, now=self._now())
        if judged.late != self._facts.late:
            self._update(replace(self._facts, late=judged.late))
        for local_rank, message in judged.hung:
            self.give_up_worker(local_rank, message)
        return judged.wake_at

    def _take_in(self, local_rank: int, event: Event) -> None:
        self._paces[local_rank] = self._paces[local_rank].heard(event, now=self._now())
        self._update(self._facts.heard(local_rank, event, now=self._now()))
        match event:
            case ProgressMade(progress=progress) if self._facts.hosts_store():
                self._observer.on_progress(progress)
            case FiguresTaken(figures=figures) if self._facts.placement:
                self._observer.on_figures(self._facts.placement.first_rank + local_rank, figures)
                # Only now, as it would take the processor from a group that forms.
                self._crew.prepare_for(self._facts.placement.assignment.mesh)
            case GrowthRejected(rejection=rejection) if self._facts.growth_rejection is not None:
                self._observer.on_growth_rejected(rejection)
            case WorkerFailed():
                # It may take long to end: libraries' threads, its own clean-up.
                self._crew.kill(local_rank)

    def _lose_worker(self, local_rank: int, reason: str, message: str) -> None:
        if self._exit_code is not None:
            return
        failure = Failure(
            exit_code=ExitCode.CRASHED,
            reason=reason,
            message=message,
            rank=self._facts.rank_of(local_rank),
        )
        self._paces[local_rank] = Pace()
        self._update(self._facts.losing_worker(local_rank, failure, now=self._now()))
        self._crew.kill(local_rank)

    def _tell(self, local_rank: int, command: Command) -> None:
        if isinstance(command, Join):
            self._crew.name(local_rank, f"rank {command.rank}")
        self._crew.tell(local_rank, command)
        self._paces[local_rank] = self._paces[local_rank].told(command, now=self._now())
        self._update(self._facts.told(local_rank, command))

    # Where the group meets

    def _keep_lookup(self) -> None:
        """Have one lookup, that of the newest attempt, and only while it is needed."""
        facts = self._facts
        wanted = (facts.generation, facts.awaited_attempt) if facts.needs_store() else None
        if self._lookup and self._lookup.attempt != wanted:
            self._lookup.task.cancel()
            self._lookup = None
        if self._lookup is None and wanted is not None:
            self._lookup = _Lookup(wanted, self._tasks.create_task(self._look_up(*wanted)))

    async def _look_up(self, generation: int, attempt: int) -> None:
        assert self._facts.placement
        try:
            store = await self._look_up_store(self._facts.placement.leader, generation, attempt)
        except StoreUnknownError as error:
            self._update(self._facts.giving_up(generation=generation, message=str(error)))
        else:
            self._update(self._facts.knowing_store(store))

    # Its facts

    def _update(self, facts: Facts) -> None:
        before, self._facts = self._facts, facts
        told = _without_times(self.status())
        if told != self._told:
            self._told = told
            self._version += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if before.state() is not facts.state() or before.failure != facts.failure:
            _log_state(facts)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


class _Lookup(NamedTuple):
    attempt: tuple[int, int]
    """Generation and attempt."""
    task: asyncio.Task[None]


def _log_state(facts: Facts) -> None:
    failure = facts.failure
    fields = (
        {"reason": failure.reason, "failure": failure.message, "rank": failure.rank}
        if failure
        else {}
    )
    _log.log(
        logging.WARNING if failure else logging.INFO,
        "the agent's state has changed",
        extra={"state": facts.state().value, "generation": facts.generation, **fields},
    )


def _without_times(status: AgentStatus) -> AgentStatus:
    """Return what of a status makes another version of it."""
    late = tuple(worker.model_copy(update={"seconds": 0.0}) for worker in status.late)
    return status.model_copy(update={"version": 0, "progress": None, "late": late})


def _earlier(*times: float | None) -> float | None:
    return min((time for time in times if time is not None), default=None)


def _describe_exit(code: int | None) -> str:
    if code is None:
        return "ended"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"

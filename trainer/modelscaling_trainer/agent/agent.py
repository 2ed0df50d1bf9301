"""The agent itself: keeps the facts, starts the workers, carries out what `decide` returns.

It has no network of its own: `server.py` puts it on HTTP in a pod, and the local run calls it
directly.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from typing import TYPE_CHECKING, NamedTuple, Protocol

from modelscaling.protocol import (
    AgentState,
    AgentStatus,
    StopMode,
    TerminationReport,
)
from modelscaling_trainer.agent.decision import decide
from modelscaling_trainer.agent.facts import Facts, WorkerFacts
from modelscaling_trainer.agent.fencing import (
    Verdict,
    judge_assignment,
    judge_stop,
)
from modelscaling_trainer.agent.openmp import available_cores, openmp_environment
from modelscaling_trainer.agent.store_lookup import StoreUnknownError
from modelscaling_trainer.agent.worker_process import WorkerProcess
from modelscaling_trainer.worker_protocol import (
    FiguresTaken,
    Join,
    Prepare,
    ProgressMade,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from modelscaling.exit_code import ExitCode
    from modelscaling.protocol import (
        GroupAssignment,
        Member,
        Progress,
        StopRequest,
        StoreAddress,
    )
    from modelscaling_trainer.agent.fencing import Judgement
    from modelscaling_trainer.agent.settings import AgentSettings
    from modelscaling_trainer.figures import ProcessFigures
    from modelscaling_trainer.worker_protocol import Command, Event

    LookUpStore = Callable[[Member, int], Awaitable[StoreAddress]]

_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Who is told how training goes."""

    def on_progress(self, progress: Progress) -> None:
        """Take the run's numbers after a step; only where rank 0 is."""
        ...

    def on_figures(self, rank: int, figures: ProcessFigures) -> None:
        """Take one process' own numbers after a step."""
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
        self._workers: list[WorkerProcess] = []
        self._changed = asyncio.Event()
        self._lookup: _Lookup | None = None
        self._exit_code: ExitCode | None = None

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
        placement = self._facts.placement
        newest = placement.assignment.configuration if placement else self._settings.configuration
        return newest.model.parameters()

    @property
    def state(self) -> AgentState:
        """What it is doing."""
        return AgentState.ENDED if self._exit_code is not None else self._facts.state()

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
        """Save at a step boundary and end, within the time that a pod has after SIGTERM."""
        deadline = self._now() + self._settings.termination_grace_s
        self._update(
            self._facts.stopping(
                self._facts.stop_mode or StopMode.SUSPEND,
                generation=self._facts.generation,
                deadline=deadline,
            )
        )

    def end_at_once(self) -> None:
        """End the workers without saving."""
        for worker in self._workers:
            worker.kill()

    async def wait_for(self, holds: Callable[[], bool], timeout_s: float) -> bool:
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
            for local_rank in range(self._settings.identity.processes):
                worker = await self._start_worker(local_rank)
                tasks.create_task(self._watch(local_rank, worker))
            self._exit_code = await self._act_until_end(tasks)
            _log.info("the agent ends", extra={"exit_code": self._exit_code.name})
            if self._lookup:
                self._lookup.task.cancel()
            # Nothing is lost: they wait for a group, or had until the deadline. Their own clean-up
            # would take seconds.
            self.end_at_once()
        return self._exit_code

    async def _start_worker(self, local_rank: int) -> WorkerProcess:
        added = openmp_environment(
            self._environment,
            cores=available_cores(),
            processes=self._settings.identity.processes,
            shares_machine=self._settings.shares_machine,
        )
        worker = await WorkerProcess.start({**self._environment, **added})
        worker.label = f"worker {local_rank}"
        worker.send(
            Prepare(
                configuration=self._settings.configuration,
                local_rank=local_rank,
                scratch=self._settings.scratch,
                checkpoint_directory=self._settings.checkpoint_directory,
                mesh=self._settings.mesh,
                stop_at_step=self._settings.stop_at_step,
            )
        )
        self._workers.append(worker)
        return worker

    async def _watch(self, local_rank: int, worker: WorkerProcess) -> None:
        """Take in what a worker says until it has ended."""
        code = await worker.run(lambda event: self._take_in(local_rank, event))
        if self._exit_code is not None:
            return
        self._update(
            self._facts.lost_worker(
                local_rank,
                message=f"{worker.label} {_describe_exit(code)}: {worker.last_lines}",
                deadline=self._now() + self._settings.failure_grace_s,
            )
        )

    def _take_in(self, local_rank: int, event: Event) -> None:
        deadline = self._now() + self._settings.failure_grace_s
        self._update(self._facts.heard(local_rank, event, failure_deadline=deadline))
        match event:
            case ProgressMade(progress=progress) if self._facts.hosts_store():
                self._observer.on_progress(progress)
            case FiguresTaken(figures=figures) if self._facts.placement:
                self._observer.on_figures(self._facts.placement.first_rank + local_rank, figures)

    async def _act_until_end(self, tasks: asyncio.TaskGroup) -> ExitCode:
        while True:
            changed = self._changed
            self._keep_lookup(tasks)
            decision = decide(self._facts, self._now())
            if decision.exit_code is not None:
                return decision.exit_code
            if decision.failure:
                self._update(self._facts.failing(decision.failure, deadline=self._now()))
            for local_rank, command in decision.commands:
                self._tell(local_rank, command)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(decision.wake_at):
                    await changed.wait()

    def _tell(self, local_rank: int, command: Command) -> None:
        worker = self._workers[local_rank]
        if isinstance(command, Join):
            worker.label = f"rank {command.rank}"
        worker.send(command)
        self._update(self._facts.told(local_rank, command))

    # Where the group meets

    def _keep_lookup(self, tasks: asyncio.TaskGroup) -> None:
        """Have one lookup, that of the newest group, and only while it is needed."""
        wanted = self._facts.generation if self._facts.needs_store() else None
        if self._lookup and self._lookup.generation != wanted:
            self._lookup.task.cancel()
            self._lookup = None
        if self._lookup is None and wanted is not None:
            self._lookup = _Lookup(wanted, tasks.create_task(self._look_up(wanted)))

    async def _look_up(self, generation: int) -> None:
        assert self._facts.placement
        try:
            store = await self._look_up_store(self._facts.placement.leader, generation)
        except StoreUnknownError as error:
            self._update(self._facts.giving_up(generation=generation, message=str(error)))
        else:
            self._update(self._facts.knowing_store(generation=generation, port=store.port))

    # Its facts

    def _update(self, facts: Facts) -> None:
        before, self._facts = self._facts, facts
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if before.state() is not facts.state() or before.failure != facts.failure:
            _log_state(facts)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


class _Lookup(NamedTuple):
    generation: int
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


def _describe_exit(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"

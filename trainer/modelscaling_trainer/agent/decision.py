"""What an agent does next: a pure function of what it knows and the time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelscaling.exit_code import ExitCode
from modelscaling.protocol import Failure, StopMode
from modelscaling_trainer.agent.facts import WorkerState
from modelscaling_trainer.request import Outcome, Request
from modelscaling_trainer.worker_protocol import Ask, Join

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelscaling_trainer.agent.facts import Facts
    from modelscaling_trainer.worker_protocol import Command

_STOP_EXIT_CODES = {
    StopMode.SUSPEND: ExitCode.INTERRUPTED,
    StopMode.RELEASE: ExitCode.DONE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do now; nothing at all where all is as it should be."""

    commands: tuple[tuple[int, Command], ...] = ()
    """Commands and the workers (by local rank) that they are for."""
    exit_code: ExitCode | None = None
    """End the agent."""
    failure: Failure | None = None
    """Take this as what ends the agent, and decide again."""
    wake_at: float | None = None
    """When to decide again even if nothing has happened."""


def decide(facts: Facts, now: float) -> Decision:
    """Return the next thing to do; `now` is the event loop's time in seconds."""
    if all(worker.outcome is Outcome.COMPLETE for worker in facts.workers):
        return Decision(exit_code=ExitCode.DONE)
    if facts.is_failed:
        assert facts.failure
        return _end(facts, now, facts.failure.exit_code)
    if facts.stop_mode:
        return _end(facts, now, _STOP_EXIT_CODES[facts.stop_mode])
    if facts.is_pending() and facts.is_warm():
        return _form(facts, now)
    return Decision()


def _end(facts: Facts, now: float, exit_code: ExitCode) -> Decision:
    """End once no worker holds steps that it may still save, or at the deadline."""
    saving = any(w.state is WorkerState.BUSY and w.has_trained for w in facts.workers)
    if not saving or _is_due(facts, now):
        return Decision(exit_code=exit_code)
    busy = [rank for rank, w in enumerate(facts.workers) if w.state is WorkerState.BUSY]
    return Decision(
        commands=tuple(_asking(facts, busy, Request.STOP)),
        wake_at=facts.deadline,
    )


def _form(facts: Facts, now: float) -> Decision:
    """End the old group, then join the newest one."""
    assert facts.placement
    old = [rank for rank, w in enumerate(facts.workers) if w.state is WorkerState.BUSY]
    old = [rank for rank in old if facts.workers[rank].generation < facts.generation]
    if not old:
        return Decision(commands=tuple(_joining(facts)))
    if _is_due(facts, now):
        return Decision(
            failure=Failure(
                exit_code=ExitCode.CRASHED,
                reason="WorkerHung",
                message=(
                    f"the group of generation {facts.workers[old[0]].generation} did not reach a "
                    f"step boundary before the deadline for generation {facts.generation}; a peer "
                    f"may be cut off"
                ),
                rank=None,
            )
        )
    # A worker builds another run for another configuration, so what is in memory has to be saved.
    configuration = facts.placement.assignment.configuration
    is_same = all(facts.workers[rank].configuration == configuration for rank in old)
    return Decision(
        commands=tuple(_asking(facts, old, Request.REFORM if is_same else Request.STOP)),
        wake_at=facts.deadline,
    )


def _is_due(facts: Facts, now: float) -> bool:
    return facts.deadline is not None and now >= facts.deadline


def _asking(facts: Facts, ranks: list[int], request: Request) -> Iterator[tuple[int, Command]]:
    """Yield a request to each of the workers that was not asked yet."""
    for local_rank in ranks:
        worker = facts.workers[local_rank]
        if request not in worker.asked:
            yield local_rank, Ask(generation=worker.generation, request=request)


def _joining(facts: Facts) -> Iterator[tuple[int, Command]]:
    """Yield the command to join to each worker that can: rank 0 opens the store for the others."""
    assert facts.placement
    assignment = facts.placement.assignment
    for local_rank, worker in enumerate(facts.workers):
        rank = facts.placement.first_rank + local_rank
        if worker.generation >= facts.generation or (rank > 0 and facts.store_port is None):
            continue
        yield (
            local_rank,
            Join(
                generation=facts.generation,
                mesh=assignment.mesh,
                rank=rank,
                local_rank=local_rank,
                store_host=facts.placement.leader.address,
                store_port=facts.store_port if rank else None,
                configuration=assignment.configuration,
            ),
        )

"""What an agent does next: a pure function of what it knows and the time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from modelscaling.exit_code import ExitCode
from modelscaling.protocol import Failure, StopMode
from modelscaling_trainer.agent.worker_facts import FORMING_PHASES, WorkerState
from modelscaling_trainer.request import Outcome, Request
from modelscaling_trainer.worker_protocol import Abandon, Ask, Join

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelscaling.mesh import Mesh
    from modelscaling.protocol import GroupAssignment, GrowthRejection
    from modelscaling_trainer.agent.facts import Facts
    from modelscaling_trainer.agent.worker_facts import WorkerFacts
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
    stops: bool = False
    """Stop now, as there is no more time to wait for a group without this pod."""
    failure: Failure | None = None
    """Take this as what ends the agent, and decide again."""
    wake_at: float | None = None
    """When to decide again even if nothing has happened."""


def decide(facts: Facts, now: float, *, most_breaks: int | None = None) -> Decision:
    """Return the next thing to do; `now` is the event loop's time in seconds.

    The agent ends after `most_breaks` attempts that have failed without a new step between them.
    """
    decision = (
        _finish(facts)
        or _abandon_broken(facts)
        or _save_again(facts, now, most_breaks)
        or _end(facts, now)
        or _give_up(facts, most_breaks)
        or _form(facts, now)
        or Decision()
    )
    return replace(decision, wake_at=_wake_at(facts, now))


def _wake_at(facts: Facts, now: float) -> float | None:
    """Return the next moment at which something is due."""
    times = [
        facts.deadline,
        facts.leave_by,
        facts.end_by,
        facts.begin_at if facts.hosts_store() else None,
    ]
    return min((time for time in times if time is not None and time > now), default=None)


def _finish(facts: Facts) -> Decision | None:
    """End once the run is complete, or goes on without this pod."""
    if all(worker.outcome is Outcome.COMPLETE for worker in facts.workers):
        return Decision(exit_code=ExitCode.DONE)
    if facts.is_done_leaving():
        return Decision(exit_code=ExitCode.INTERRUPTED if facts.is_leaving else ExitCode.DONE)
    return None


def _abandon_broken(facts: Facts) -> Decision | None:
    """Have workers leave a group that cannot go on."""
    commands = tuple(
        (local_rank, _abandon(worker, worker.broken_because))
        for local_rank, worker in enumerate(facts.workers)
        if worker.state is WorkerState.BUSY and worker.broken_because and not worker.is_abandoning
    )
    return Decision(commands=commands) if commands else None


def _abandon(worker: WorkerFacts, why: str) -> Abandon:
    return Abandon(generation=worker.generation, attempt=worker.attempt, why=why)


def _save_again(facts: Facts, now: float, most_breaks: int | None) -> Decision | None:
    """Have a group that could not save what it holds meet again before it ends: it is asked to stop
    once it trains, as one that only meets ends without a checkpoint.
    """
    if not facts.is_unsaved or _is_due(facts, now):
        return None
    meets = any(w.state is WorkerState.BUSY and w.phase in FORMING_PHASES for w in facts.workers)
    if not meets and not facts.is_pending():
        return None
    return _give_up(facts, most_breaks) or _form(facts, now) or Decision()


def _end(facts: Facts, now: float) -> Decision | None:
    """End an agent that has failed, was told to stop, or has no time left to wait."""
    if facts.is_failed:
        assert facts.failure
        return _end_with(facts.failure.exit_code, facts, now)
    if facts.stop_mode:
        return _end_with(_STOP_EXIT_CODES[facts.stop_mode], facts, now)
    return Decision(stops=True) if _must_stop(facts, now) else None


def _end_with(exit_code: ExitCode, facts: Facts, now: float) -> Decision:
    """End once no worker holds steps that it may still save, or at the deadline."""
    saving = any(w.state is WorkerState.BUSY and w.may_hold_steps for w in facts.workers)
    if not saving or _is_due(facts, now):
        return Decision(exit_code=exit_code)
    busy = [rank for rank, w in enumerate(facts.workers) if w.state is WorkerState.BUSY]
    return Decision(commands=tuple(_asking(facts, busy, Request.STOP)))


def _must_stop(facts: Facts, now: float) -> bool:
    """Whether a pod that was told to end has no more time to wait for a group without it. One that
    has a place among those that leave has nothing to save, and waits to the end.
    """
    if not facts.is_leaving:
        return False
    is_leaver = facts.placement is not None and facts.placement.is_leaver
    until = facts.end_by if is_leaver else facts.leave_by
    return until is not None and now >= until


def _give_up(facts: Facts, most_breaks: int | None) -> Decision | None:
    """End a run that nobody else watches, and that fails again and again, or does not grow as it
    was declared.
    """
    if most_breaks is None:
        return None
    if facts.growth_rejection is not None:
        return Decision(failure=_describe_rejection(facts.growth_rejection))
    failed = max(facts.breaks, *(worker.failed_starts for worker in facts.workers))
    if failed < most_breaks or facts.failure is None:
        return None
    return Decision(failure=facts.failure)


def _describe_rejection(rejection: GrowthRejection) -> Failure:
    return Failure(
        exit_code=ExitCode.CONFIGURATION,
        reason="GrowthRejected",
        message=(
            f"{rejection.message}; its checkpoints are those of the model before: go on with that, "
            f"or raise the tolerance"
        ),
    )


def _form(facts: Facts, now: float) -> Decision | None:
    """End the old group, then join the newest attempt to form the new one."""
    if not facts.is_pending() or not facts.is_warm():
        return None
    old = [rank for rank, w in enumerate(facts.workers) if _is_in_older_group(w, facts)]
    if old:
        return Decision(commands=tuple(_leaving_old(facts, old, now)))
    if any(w.state is WorkerState.BUSY and facts.has_to_join(w) for w in facts.workers):
        return None
    if facts.hosts_store() and now < facts.begin_at:
        return None
    return Decision(commands=tuple(_joining(facts)))


def _is_in_older_group(worker: WorkerFacts, facts: Facts) -> bool:
    return worker.state is WorkerState.BUSY and worker.generation < facts.generation


def _leaving_old(facts: Facts, old: list[int], now: float) -> Iterator[tuple[int, Command]]:
    """Yield what makes workers leave the group before: at a step boundary that all its members
    agree on, or at once where that cannot be reached.
    """
    staying = [rank for rank in old if not facts.workers[rank].is_abandoning]
    why = _why_no_boundary(facts, staying, now)
    if why:
        for rank in staying:
            yield rank, _abandon(facts.workers[rank], why)
        return
    assert facts.placement
    next_mesh = None if facts.placement.is_leaver else facts.placement.assignment.mesh
    yield from _asking(facts, staying, _request_to_leave(facts, staying), next_mesh)


def _why_no_boundary(facts: Facts, old: list[int], now: float) -> str | None:
    """Return why the old group will not come to a step boundary; None if it may."""
    assert facts.placement
    if _is_due(facts, now):
        return (
            f"its members did not come to a step boundary before the deadline for generation "
            f"{facts.generation}"
        )
    now_there = facts.placement.pods
    for rank in old:
        before = facts.workers[rank].placement
        members = before.assignment.members if before else ()
        gone = [member.index for member in members if member not in now_there]
        if gone:
            return f"generation {facts.generation} does without pods {gone}, which are gone"
    return None


def _request_to_leave(facts: Facts, old: list[int]) -> Request:
    """Return what ends the old group: with a checkpoint where another configuration follows, and
    with its validation loss where that is of another model.
    """
    assert facts.placement
    configuration = facts.placement.assignment.configuration
    places = [facts.workers[rank].placement for rank in old]
    before = [place.assignment.configuration for place in places if place]
    if any(one.model != configuration.model for one in before):
        return Request.GROW
    is_same = len(before) == len(places) and all(one == configuration for one in before)
    return Request.REFORM if is_same else Request.STOP


def _is_due(facts: Facts, now: float) -> bool:
    return facts.deadline is not None and now >= facts.deadline


def _asking(
    facts: Facts, ranks: list[int], request: Request, next_mesh: Mesh | None = None
) -> Iterator[tuple[int, Command]]:
    """Yield a request to each of the workers that was not asked yet."""
    for local_rank in ranks:
        worker = facts.workers[local_rank]
        if request not in worker.asked:
            yield (
                local_rank,
                Ask(
                    generation=worker.generation,
                    attempt=worker.attempt,
                    request=request,
                    mesh=next_mesh,
                ),
            )


def _joining(facts: Facts) -> Iterator[tuple[int, Command]]:
    """Yield the command to join to each worker that can: rank 0 opens the store for the others."""
    assert facts.placement
    placement = facts.placement
    for local_rank, worker in enumerate(facts.workers):
        rank = placement.first_rank + local_rank
        if not facts.has_to_join(worker) or (rank > 0 and facts.store_port is None):
            continue
        with_leaving = facts.with_leaving if rank else not facts.has_handed_over
        yield (
            local_rank,
            Join(
                generation=facts.generation,
                attempt=facts.awaited_attempt,
                mesh=placement.assignment.mesh,
                leavers=placement.leavers if with_leaving else 0,
                rank=rank,
                local_rank=local_rank,
                store_host=placement.leader.address,
                store_port=facts.store_port if rank else None,
                configuration=placement.assignment.configuration,
                checkpoint_step=_known_checkpoint(facts, placement.assignment),
            ),
        )


def _known_checkpoint(facts: Facts, assignment: GroupAssignment) -> int | None:
    """Return the newest checkpoint that the run is known to have: when the group was decided, or
    since, as rank 0 has said, if that is here.
    """
    since = facts.progress.checkpoint_step if facts.progress else None
    known = [step for step in (assignment.checkpoint_step, since) if step is not None]
    return max(known, default=None)

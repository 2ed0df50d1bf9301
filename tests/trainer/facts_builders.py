"""An agent's facts in the states that the tests begin with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelscaling.exit_code import ExitCode
from modelscaling.protocol import Failure, StoreAddress
from modelscaling_trainer.agent.decision import decide
from modelscaling_trainer.agent.facts import Facts
from modelscaling_trainer.agent.worker_facts import WorkerFacts
from modelscaling_trainer.worker_protocol import GroupLost, PhaseBegan, ProgressMade, Warm
from tests.trainer.agent_builders import make_figures, make_placement, make_progress

if TYPE_CHECKING:
    from modelscaling_trainer.worker_protocol import Event

DEADLINE = 10.0
NOW = 5.0
FIGURES = make_figures()
DIED = Failure(exit_code=ExitCode.CRASHED, reason="WorkerDied", message="killed by SIGKILL")


def warm(processes: int = 1) -> Facts:
    """An agent whose workers wait for a group."""
    facts = Facts(workers=(WorkerFacts(),) * processes)
    for local_rank in range(processes):
        facts = hear(facts, Warm(), local_rank)
    return facts


def hear(facts: Facts, event: Event, local_rank: int = 0) -> Facts:
    return facts.heard(local_rank, event, now=NOW)


def lose(facts: Facts, local_rank: int = 0) -> Facts:
    return facts.losing_worker(local_rank, DIED, now=NOW)


def carry_out(facts: Facts, now: float = 0.0) -> Facts:
    """The facts after all that is decided by then has been done."""
    while commands := decide(facts, now).commands:
        for local_rank, command in commands:
            facts = facts.told(local_rank, command)
    return facts


def replace_worker(facts: Facts, local_rank: int = 0) -> Facts:
    """The facts once another process is warm in the place of a worker."""
    return hear(facts.starting(local_rank), Warm(), local_rank)


def training(generation: int = 1, attempt: int = 1) -> Facts:
    """An agent of one process that leads a group of two pods and trains in it."""
    facts = warm().obeying(make_placement(1, 1, generation=generation), deadline=DEADLINE)
    facts = carry_out(facts)
    return hear(facts, PhaseBegan(generation=generation, attempt=attempt, phase="Training"))


def following(generation: int = 1) -> Facts:
    """An agent of one process that is the second pod of a group of two, and trains in it."""
    facts = warm().obeying(make_placement(1, 1, index=1, generation=generation), deadline=DEADLINE)
    facts = carry_out(facts.knowing_store(store(generation=generation)))
    return hear(facts, PhaseBegan(generation=generation, attempt=1, phase="Training"))


def store(
    *, generation: int = 1, attempt: int = 1, port: int = 4242, with_leaving: bool = False
) -> StoreAddress:
    return StoreAddress(
        generation=generation, attempt=attempt, port=port, with_leaving=with_leaving
    )


def lost(generation: int = 1, attempt: int = 1) -> GroupLost:
    return GroupLost(generation=generation, attempt=attempt, message="rank 1 is gone")


def progress(step: int, attempt: int = 1) -> ProgressMade:
    return ProgressMade(generation=1, attempt=attempt, progress=make_progress(step=step))

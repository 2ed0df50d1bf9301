"""What an agent makes of a worker that does not come on: `lateness.py` at work in it."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest

from modelscaling_trainer.agent.worker_facts import WorkerState
from modelscaling_trainer.worker_protocol import (
    Alive,
    FiguresTaken,
    Join,
    PhaseBegan,
    StoreOpened,
    Warm,
)
from tests.trainer.agent_builders import make_assignment, make_configuration, make_figures
from tests.trainer.agent_process import AgentProcess, make_group, start_agent
from tests.trainer.steered_agent import SteeredAgent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from modelscaling.protocol import LateWorker


@pytest.fixture
async def agent() -> AsyncIterator[SteeredAgent]:
    """An agent whose worker, rank 0 of 2, has done three steps of a second."""
    agent = SteeredAgent()
    agent.assign(make_assignment(1, 1))
    acting = asyncio.create_task(agent.act())
    agent.hear(Warm())
    await agent.wait_for(lambda: agent.facts.workers[0].state is WorkerState.BUSY, 10)
    agent.hear(
        StoreOpened(generation=1, attempt=1, port=4242),
        PhaseBegan(generation=1, attempt=1, phase="Training"),
    )
    for step in (1, 2, 3):
        agent.after(1).hear(FiguresTaken(generation=1, attempt=1, figures=make_figures(step)))
    yield agent
    acting.cancel()
    await asyncio.wait([acting])


async def test_a_late_worker_is_shown_until_its_next_step(agent: SteeredAgent) -> None:
    before = agent.version
    agent.after(30).hear(Alive(is_waiting=True))
    await agent.wait_for(lambda: bool(agent.facts.late), 10)

    (late,) = agent.status().late
    assert (late.rank, late.step, late.is_waiting) == (0, 3, True)
    assert late.seconds == pytest.approx(30, abs=1)
    assert agent.version > before

    agent.hear(FiguresTaken(generation=1, attempt=1, figures=make_figures(4)))
    await agent.wait_for(lambda: not agent.facts.late, 10)
    assert agent.facts.worker_failures == 0


async def test_the_seconds_that_a_worker_is_late_make_no_other_version(
    agent: SteeredAgent,
) -> None:
    agent.after(30).hear(Alive(is_waiting=True))
    await agent.wait_for(lambda: bool(agent.facts.late), 10)
    version = agent.version

    agent.after(30).hear(Alive(is_waiting=True))
    await agent.wait_for(lambda: agent.facts.late[0].seconds > 59, 10)

    assert agent.version == version


async def test_a_hung_worker_is_killed_and_its_attempt_given_up(agent: SteeredAgent) -> None:
    agent.after(70).hear(Alive(is_waiting=False))

    await agent.wait_for(lambda: agent.facts.worker_failures == 1, 10)

    assert agent.crew.killed == [0]
    failure = agent.facts.failure
    assert failure is not None
    assert (failure.reason, failure.rank) == ("WorkerHung", 0)
    assert "has not come beyond step 3 (Training) for 7" in failure.message
    assert agent.facts.broken_attempt == 1
    assert agent.facts.late == ()


async def test_the_worker_in_its_place_is_judged_anew(agent: SteeredAgent) -> None:
    agent.after(70).hear(Alive(is_waiting=False))
    await agent.wait_for(lambda: agent.facts.worker_failures == 1, 10)
    agent.hear(Warm())
    await agent.wait_for(lambda: agent.facts.workers[0].state is WorkerState.BUSY, 10)
    _, joined = agent.crew.told[-1]
    assert isinstance(joined, Join)
    assert joined.attempt == 2

    agent.hear(PhaseBegan(generation=1, attempt=2, phase="Training"))
    # Before its first step it may take long: it is late by now, and far from being killed.
    agent.after(601).hear(Alive(is_waiting=False))
    await agent.wait_for(lambda: bool(agent.facts.late), 10)

    assert agent.crew.killed == [0]


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[list[AgentProcess]]:
    """Two agents whose workers train together."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{n} bottles of beer on the wall, " for n in range(2000)))
    run = make_configuration(
        data__text={"path": str(text)},
        model__layers=1,
        model__hiddenSize=32,
        training__globalBatchSize=6,
        training__tokens=1_000_000 * 6 * 64,
        training__precision="Float32",
        training__compile="Never",
        training__validateEverySteps=0,
    )
    started = [start_agent(tmp_path / f"agent-{index}", run, index=index) for index in range(2)]
    try:
        for agent in started:
            agent.wait_until_warm()
        group = make_group(*started, generation=1, configuration=run)
        for agent in started:
            assert agent.assign(group).status == 202
        started[0].wait_for_step(10)
        yield started
    finally:
        for agent in started:
            agent.process.kill()
            agent.process.wait(30)


def late_worker(agent: AgentProcess) -> LateWorker:
    (late,) = agent.wait_for_status(lambda status: bool(status.late)).late
    return late


@pytest.mark.process
def test_a_rank_that_is_stopped_is_told_from_those_that_wait_for_it_and_goes_on(
    agents: list[AgentProcess],
) -> None:
    (stopped,) = agents[1].worker_pids()
    os.kill(stopped, signal.SIGSTOP)

    laggard, waiting = late_worker(agents[1]), late_worker(agents[0])
    assert (laggard.rank, laggard.is_waiting) == (1, False)
    assert (waiting.rank, waiting.is_waiting) == (0, True)

    os.kill(stopped, signal.SIGCONT)
    status = agents[0].wait_for_status(
        lambda status: (
            status.progress is not None
            and status.progress.step >= waiting.step + 10
            and not status.late
        )
    )
    assert (status.generation, status.attempt) == (1, 1)
    agents[1].wait_for_status(lambda status: not status.late and not status.worker_failures)

"""Pods that are killed or stopped, as the agents of their group notice it by themselves."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from modelscaling.protocol import AgentState
from tests.trainer.agent_builders import make_configuration
from tests.trainer.agent_process import AgentProcess, make_group, start_agent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from modelscaling.configuration import RunConfiguration

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

ENDLESS = 1_000_000


class Pods:
    """Agents that train together."""

    def __init__(self, run: RunConfiguration, *agents: AgentProcess) -> None:
        self.run = run
        self.agents = agents

    def form(self, *agents: AgentProcess, generation: int) -> None:
        group = make_group(*agents, generation=generation, configuration=self.run)
        for agent in agents:
            assert agent.assign(group).status == 202


def send(agent: AgentProcess, number: signal.Signals) -> None:
    """Send a signal to all processes of a pod, as a node that vanishes stops all of them."""
    for pid in (agent.process.pid, agent.zygote_pid(), *agent.worker_pids()):
        os.kill(pid, number)


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    """Three pods that train as generation 1."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{n} bottles of beer on the wall, " for n in range(2000)))
    run = make_configuration(
        data__text={"path": str(text)},
        model__layers=1,
        model__hiddenSize=32,
        training__globalBatchSize=6,
        training__tokens=ENDLESS * 6 * 64,
        training__precision="Float32",
        training__compile="Never",
        training__validateEverySteps=0,
    )
    agents = [start_agent(tmp_path / f"agent-{index}", run, index=index) for index in range(3)]
    try:
        for agent in agents:
            agent.wait_until_warm()
        pods = Pods(run, *agents)
        pods.form(*agents, generation=1)
        agents[0].wait_for_step(3)
        yield pods
    finally:
        for agent in agents:
            agent.process.kill()  # its other processes end with it, also while it is stopped
            agent.process.wait(30)


@pytest.mark.parametrize("lost", [2, 0], ids=["a member", "the first member"])
def test_survivors_of_a_node_that_vanishes_are_told_and_go_on(pods: Pods, lost: int) -> None:
    vanished = pods.agents[lost]
    survivors = [agent for agent in pods.agents if agent is not vanished]

    send(vanished, signal.SIGSTOP)
    for survivor in survivors if lost == 0 else survivors[:1]:
        survivor.wait_for_status(lambda status: status.lost == (lost,))
    for survivor in survivors:
        survivor.wait_for_status(lambda status: status.state is AgentState.FORMING)
    before = survivors[0].status().progress
    step = before.step if before else 0
    pods.form(*survivors, generation=2)
    survivors[0].wait_for_step(step + 1)

    # Back again with its old number, it is turned away and disturbs nobody.
    send(vanished, signal.SIGCONT)
    vanished.wait_for_status(lambda status: status.state is not AgentState.TRAINING)
    status = survivors[0].wait_for_step(step + 20)
    assert (status.generation, status.attempt, status.lost) == (2, 1, ())
    assert vanished.status().generation == 1


def test_a_killed_pod_is_known_to_be_lost_at_once(pods: Pods) -> None:
    leader, _, killed = pods.agents

    began = time.monotonic()
    killed.process.kill()
    leader.wait_for_status(lambda status: status.lost == (2,))

    assert time.monotonic() - began < 1.4


def test_a_group_whose_agent_was_only_silent_forms_again_by_itself(pods: Pods) -> None:
    leader, member, silent = pods.agents
    os.kill(silent.process.pid, signal.SIGSTOP)
    leader.wait_for_status(lambda status: status.lost == (2,))

    os.kill(silent.process.pid, signal.SIGCONT)

    status = leader.wait_for_status(
        lambda status: status.attempt > 1 and status.state is AgentState.TRAINING
    )
    assert status.progress is not None
    assert (status.generation, status.worker_failures) == (1, 0)
    leader.wait_for_step(status.progress.step + 3)
    for agent in (leader, member, silent):
        agent.wait_for_status(
            lambda status: status.state is AgentState.TRAINING and not status.lost
        )

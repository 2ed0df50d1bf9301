"""Workers that die, hang or leave under real agents: the run ends as if nothing had been."""

from __future__ import annotations

import os
import signal
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from modelscaling.exit_code import ExitCode
from modelscaling.protocol import AgentState
from tests.trainer.agent_process import AgentProcess, form, make_run, start_agent, warm_up
from tests.trainer.runs import write_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.trainer.agent_process import StartAgent

    Undisturbed = Callable[[int], Any]

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

STEPS = 200
ENDLESS = 1_000_000


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """What the end of the run of `STEPS` is on so many processes, without any disturbance."""

    @cache
    def end(processes: int) -> tuple[int, str, Any]:
        directory = tmp_path_factory.mktemp("undisturbed")
        run = make_run(write_text(directory), steps=STEPS)
        agent = start_agent(directory / "agent", run, processes=processes)
        warm_up(agent)
        form(agent, generation=1, run=run)
        step, digest, loss = end_of(agent)
        return step, digest, pytest.approx(loss, abs=1e-4)

    return end


def end_of(agent: AgentProcess) -> tuple[int, str, float]:
    """Step, digest of all samples and loss at the end of the run."""
    assert agent.wait_for_exit() == ExitCode.DONE
    progress = agent.report().progress
    assert progress is not None
    assert progress.loss is not None
    return progress.step, progress.sample_digest, progress.loss


def resumption_of(agent: AgentProcess) -> tuple[int, int, str]:
    """Generation and attempt of the last group, and where its state came from."""
    progress = agent.report().progress
    assert progress is not None
    assert progress.resumption is not None
    return progress.resumption.generation, progress.resumption.attempt, progress.resumption.source


@pytest.mark.parametrize("victim", [0, 1], ids=["rank 0", "another rank"])
def test_a_killed_worker_is_replaced_and_no_step_is_lost(
    start: StartAgent, text: Path, undisturbed: Undisturbed, victim: int
) -> None:
    run = make_run(text, steps=STEPS)
    first, second = start(run, index=0), start(run, index=1)
    warm_up(first, second)
    form(first, second, generation=1, run=run)
    first.wait_for_step(20)
    agent = (first, second)[victim]

    agent.kill_worker()

    assert end_of(first) == undisturbed(2)
    assert second.wait_for_exit() == ExitCode.DONE
    assert resumption_of(first) == (1, 2, "Memory")
    # Its status says so only until the next step.
    [(rank, words)] = agent.deaths()
    assert rank == victim
    assert words.startswith(f"rank {victim} was killed by SIGKILL")
    assert agent.report().failure is None


def test_a_killed_worker_takes_its_siblings_out_of_the_group_with_it(
    start: StartAgent, text: Path, undisturbed: Undisturbed
) -> None:
    run = make_run(text, steps=STEPS)
    agent = start(run, processes=3)
    warm_up(agent)
    form(agent, generation=1, run=run)
    agent.wait_for_step(20)

    agent.kill_worker(1)

    assert end_of(agent) == undisturbed(3)
    assert agent.report().failure is None


def test_a_worker_that_hangs_is_told_to_leave_when_a_peer_dies(
    start: StartAgent, text: Path, undisturbed: Undisturbed
) -> None:
    """A stopped process holds its connections: nobody hears from it, nobody loses it."""
    run = make_run(text, steps=STEPS)
    agent = start(run, processes=3)
    warm_up(agent)
    form(agent, generation=1, run=run)
    agent.wait_for_step(20)
    stopped = agent.worker_pids()[2]

    agent.kill_worker(2, signal.SIGSTOP)
    agent.kill_worker(1)

    agent.wait_for_status(lambda status: status.worker_failures == 1)
    os.kill(stopped, signal.SIGCONT)
    assert end_of(agent) == undisturbed(3)


def test_the_death_of_the_zygote_disturbs_nobody_and_a_new_one_makes_the_next_worker(
    start: StartAgent, text: Path
) -> None:
    run = make_run(text, steps=ENDLESS)
    agent = start(run, processes=2)
    warm_up(agent)
    form(agent, generation=1, run=run)
    progress = agent.wait_for_step(5).progress
    assert progress is not None
    first, _ = agent.worker_pids()

    os.kill(agent.zygote_pid(), signal.SIGKILL)

    after = agent.wait_for_step(progress.step + 50)
    assert (after.attempt, after.worker_failures) == (1, 0)
    os.kill(first, signal.SIGKILL)
    again = agent.wait_for_status(
        lambda status: status.attempt == 2 and status.state is AgentState.TRAINING
    )
    assert again.worker_failures == 1


def test_pods_that_leave_hand_over_and_end_and_no_step_is_lost(
    start: StartAgent, text: Path, undisturbed: Undisturbed
) -> None:
    run = make_run(text, steps=STEPS)
    stays, leaves, evicted = (start(run, index=index) for index in range(3))
    warm_up(stays, leaves, evicted)
    form(stays, leaves, evicted, generation=1, run=run)
    stays.wait_for_step(20)

    evicted.terminate()
    evicted.wait_for_status(lambda status: status.is_leaving)
    form(stays, generation=2, run=run, leaving=(leaves, evicted))

    assert leaves.wait_for_exit() == ExitCode.DONE
    assert evicted.wait_for_exit() == ExitCode.INTERRUPTED
    assert end_of(stays) == undisturbed(3)
    assert resumption_of(stays) == (2, 1, "Memory")
    assert stays.report().failure is None

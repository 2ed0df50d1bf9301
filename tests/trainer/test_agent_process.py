from __future__ import annotations

import os
import select
import signal
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from modelscaling.exit_code import ExitCode
from modelscaling.protocol import AgentState, AgentStatus, StopMode
from tests.trainer.agent_builders import make_configuration, make_stop
from tests.trainer.agent_process import AgentProcess, make_group, start_agent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from modelscaling.configuration import RunConfiguration

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]


class StartAgent(Protocol):
    def __call__(self, configuration: RunConfiguration, **options: Any) -> AgentProcess: ...


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartAgent]:
    started: list[AgentProcess] = []

    def start_one(configuration: RunConfiguration, **options: Any) -> AgentProcess:
        agent = start_agent(tmp_path / f"agent-{len(started)}", configuration, **options)
        started.append(agent)
        return agent

    yield start_one
    for agent in started:
        agent.process.kill()  # its workers end with it
        agent.process.wait(30)


@pytest.fixture
def text(tmp_path: Path) -> str:
    file = tmp_path / "text.txt"
    file.write_text("".join(f"{n} bottles of beer on the wall, " for n in range(2000)))
    return str(file)


def make_run(text: str, *, steps: int, **changes: Any) -> RunConfiguration:
    """A run of so many steps with a global batch that 1, 2 and 3 processes can share."""
    return make_configuration(
        data__text={"path": text},
        model__layers=1,
        model__hiddenSize=32,
        training__globalBatchSize=6,
        training__tokens=steps * 6 * 64,
        training__precision="Float32",
        training__compile="Never",
        training__validateEverySteps=0,
        **changes,
    )


CHECKPOINT = {"volume": {"emptyDir": {}}, "everySteps": 100_000}
ENDLESS = 1_000_000


def form(*agents: AgentProcess, generation: int, run: RunConfiguration, **options: Any) -> None:
    """Put the agents into one group, those that leave it included."""
    group = make_group(*agents, generation=generation, configuration=run, **options)
    for agent in (*agents, *options.get("leaving", ())):
        assert agent.assign(group).status == 202


def warm_up(*agents: AgentProcess) -> None:
    for agent in agents:
        agent.wait_until_warm()


def end_of(agent: AgentProcess) -> tuple[int, str, float]:
    """Step, digest of all samples and loss at the end of the run."""
    assert agent.wait_for_exit() == ExitCode.DONE
    progress = agent.report().progress
    assert progress is not None
    assert progress.loss is not None
    return progress.step, progress.sample_digest, progress.loss


def undisturbed(start: StartAgent, run: RunConfiguration, *, processes: int) -> Any:
    """The end of the same run, without any disturbance."""
    agent = start(run, processes=processes)
    warm_up(agent)
    form(agent, generation=1, run=run)
    step, digest, loss = end_of(agent)
    return step, digest, pytest.approx(loss, abs=1e-4)


def test_sigterm_saves_and_a_second_run_goes_on_at_that_step(
    start: StartAgent, text: str, tmp_path: Path
) -> None:
    run = make_run(text, steps=ENDLESS, checkpoint=CHECKPOINT)
    checkpoints = tmp_path / "checkpoints"
    first = start(run, checkpoints=checkpoints, grace_s=26)
    warm_up(first)
    form(first, generation=1, run=run)
    first.wait_for_step(3)

    first.terminate()

    assert first.wait_for_status(lambda status: status.is_leaving).state is AgentState.TRAINING
    assert first.wait_for_exit() == ExitCode.INTERRUPTED
    saved = first.report().progress
    assert saved is not None
    assert saved.checkpoint_step == saved.step >= 3

    second = start(run, checkpoints=checkpoints)
    warm_up(second)
    form(second, generation=2, run=run)
    resumed = second.wait_for_step(saved.step + 1).progress

    assert resumed is not None
    assert resumed.step > saved.step
    assert resumed.tokens == resumed.step * run.tokens_per_step


def test_a_second_sigterm_does_not_wait_for_the_others(start: StartAgent, text: str) -> None:
    run = make_run(text, steps=ENDLESS)
    agent = start(run, grace_s=600)
    warm_up(agent)
    form(agent, generation=1, run=run)
    agent.wait_for_step(1)
    agent.terminate()
    agent.wait_for_status(lambda status: status.is_leaving)

    agent.terminate()

    assert agent.wait_for_exit(20) == ExitCode.INTERRUPTED


@pytest.mark.parametrize("victim", [0, 1], ids=["rank 0", "another rank"])
def test_a_killed_worker_is_replaced_and_no_step_is_lost(
    start: StartAgent, text: str, victim: int
) -> None:
    run = make_run(text, steps=200)
    first, second = start(run, index=0), start(run, index=1)
    warm_up(first, second)
    form(first, second, generation=1, run=run)
    first.wait_for_step(20)
    agent = (first, second)[victim]

    agent.kill_worker()

    status = agent.wait_for_status(lambda status: status.worker_failures == 1)
    assert status.failure is not None
    assert (status.failure.reason, status.failure.rank) == ("WorkerDied", victim)
    assert status.failure.message.startswith(f"rank {victim} was killed by SIGKILL")
    resumed = first.wait_for_status(
        lambda status: status.attempt == 2 and status.state is AgentState.TRAINING
    )
    assert resumed.generation == 1
    assert end_of(first) == undisturbed(start, run, processes=2)
    assert second.wait_for_exit() == ExitCode.DONE
    assert agent.report().failure is None


def test_a_killed_worker_takes_its_siblings_out_of_the_group_with_it(
    start: StartAgent, text: str
) -> None:
    run = make_run(text, steps=200)
    agent = start(run, processes=3)
    warm_up(agent)
    form(agent, generation=1, run=run)
    agent.wait_for_step(20)

    agent.kill_worker(1)

    assert end_of(agent) == undisturbed(start, run, processes=3)
    assert agent.report().failure is None


def test_a_worker_that_hangs_is_told_to_leave_when_a_peer_dies(
    start: StartAgent, text: str
) -> None:
    """A stopped process holds its connections: nobody hears from it, nobody loses it."""
    run = make_run(text, steps=200)
    agent = start(run, processes=3)
    warm_up(agent)
    form(agent, generation=1, run=run)
    agent.wait_for_step(20)
    stopped = agent.worker_pids()[2]

    agent.kill_worker(2, signal.SIGSTOP)
    agent.kill_worker(1)

    agent.wait_for_status(lambda status: status.worker_failures == 1)
    os.kill(stopped, signal.SIGCONT)
    assert end_of(agent) == undisturbed(start, run, processes=3)


def test_the_death_of_the_zygote_disturbs_nobody_and_a_new_one_makes_the_next_worker(
    start: StartAgent, text: str
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
    start: StartAgent, text: str
) -> None:
    run = make_run(text, steps=300)
    stays, leaves, evicted = (start(run, index=index) for index in range(3))
    warm_up(stays, leaves, evicted)
    form(stays, leaves, evicted, generation=1, run=run)
    stays.wait_for_step(20)

    evicted.terminate()
    evicted.wait_for_status(lambda status: status.is_leaving)
    form(stays, generation=2, run=run, leaving=(leaves, evicted))

    assert leaves.wait_for_exit() == ExitCode.DONE
    assert evicted.wait_for_exit() == ExitCode.INTERRUPTED
    status = stays.wait_for_status(lambda status: status.state is AgentState.TRAINING)
    assert (status.generation, status.attempt, status.failure) == (2, 1, None)
    assert end_of(stays) == undisturbed(start, run, processes=3)


def test_an_agent_without_a_group_stops_at_once(start: StartAgent, text: str) -> None:
    agent = start(make_run(text, steps=ENDLESS))
    agent.wait_for_status(lambda status: status.state is AgentState.STARTING)

    agent.terminate()

    assert agent.wait_for_exit(10) == ExitCode.INTERRUPTED
    assert agent.report().failure is None


def test_workers_that_cannot_save_in_time_are_killed(start: StartAgent, text: str) -> None:
    run = make_run(text, steps=ENDLESS)
    agent = start(run, grace_s=0.5)
    agent.wait_until_warm()
    agent.assign(make_group(agent, generation=1, configuration=run))
    agent.wait_for_step(1)
    (worker,) = agent.worker_pids()
    os.kill(worker, signal.SIGSTOP)

    agent.terminate()

    assert agent.wait_for_exit(20) == ExitCode.INTERRUPTED
    assert agent.report().progress is not None


def test_the_death_of_an_agent_ends_its_workers(start: StartAgent, text: str) -> None:
    run = make_run(text, steps=ENDLESS)
    agent = start(run)
    agent.wait_until_warm()
    (worker,) = agent.worker_pids()
    pidfd = os.pidfd_open(worker)

    agent.process.kill()

    with os.fdopen(pidfd) as file:
        assert wait_for_end(file.fileno(), timeout_s=10)


def wait_for_end(pidfd: int, *, timeout_s: float) -> bool:
    """Whether the process behind the descriptor ends in time."""
    return bool(select.select([pidfd], [], [], timeout_s)[0])


def test_agents_form_a_group_and_form_it_anew_with_one_more(start: StartAgent, text: str) -> None:
    run = make_run(text, steps=300)
    first, second, third = (start(run, index=index) for index in range(3))
    for agent in (first, second, third):
        agent.wait_until_warm()
    pair = make_group(first, second, generation=1, configuration=run)
    trio = make_group(first, second, third, generation=2, configuration=run)

    assert [agent.assign(pair).status for agent in (second, first)] == [202, 202]
    first.wait_for_step(5)
    assert [agent.assign(trio).status for agent in (third, second, first)] == [202, 202, 202]

    # Repeating is harmless; the old number is turned away, also from the store.
    assert first.assign(trio).status == 202
    turned_away = third.assign(pair)
    assert turned_away.status == 409
    assert AgentStatus.model_validate_json(turned_away.body).generation == 2
    assert first.request("GET", "/v1/store?generation=1&attempt=1").status == 409

    assert [agent.wait_for_exit() for agent in (first, second, third)] == [0, 0, 0]
    reports = [agent.report() for agent in (first, second, third)]
    assert [report.generation for report in reports] == [2, 2, 2]
    assert reports[0].progress is not None
    assert reports[0].progress.step == 300
    assert [report.progress for report in reports[1:]] == [None, None]
    assert "rank 2" in third.log()


def test_a_released_agent_leaves_and_the_others_wait_for_a_new_group(
    start: StartAgent, text: str
) -> None:
    run = make_run(text, steps=ENDLESS)
    stays, leaves = start(run, index=0), start(run, index=1)
    for agent in (stays, leaves):
        agent.wait_until_warm()
    for agent in (stays, leaves):
        agent.assign(make_group(stays, leaves, generation=1, configuration=run))
    stays.wait_for_step(2)

    stop = make_stop(StopMode.RELEASE, generation=2)
    assert leaves.request("POST", "/v1/stop", stop).status == 202

    assert leaves.wait_for_exit() == ExitCode.DONE
    warm = stays.wait_until_warm()
    assert warm.failure is None
    assert warm.progress is not None
    before = warm.progress.step

    stays.assign(make_group(stays, generation=3, configuration=run))
    stays.wait_for_step(before + 1)


def test_a_group_whose_pod_dies_waits_for_the_next_one(start: StartAgent, text: str) -> None:
    run = make_run(text, steps=ENDLESS)
    survivor, victim = start(run, index=0), start(run, index=1)
    warm_up(survivor, victim)
    form(survivor, victim, generation=1, run=run)
    survivor.wait_for_step(2)

    victim.process.kill()

    status = survivor.wait_for_status(lambda status: status.failure is not None, timeout_s=20)
    assert status.state is AgentState.FORMING
    assert status.failure is not None
    assert status.failure.reason == "GroupLost"
    assert status.progress is not None
    form(survivor, generation=2, run=run)
    survivor.wait_for_step(status.progress.step + 1)


def test_a_glob_without_files_ends_the_agent_as_a_bad_configuration(
    start: StartAgent, tmp_path: Path
) -> None:
    agent = start(make_run(str(tmp_path / "nothing/*.txt"), steps=10))

    assert agent.wait_for_exit() == ExitCode.CONFIGURATION
    failure = agent.report().failure
    assert failure is not None
    assert failure.exit_code == ExitCode.CONFIGURATION
    assert "nothing/*.txt" in failure.message


def test_an_agent_says_how_ready_it_is_and_obeys_only_the_key(start: StartAgent, text: str) -> None:
    run = make_run(text, steps=ENDLESS)
    agent = start(run)
    agent.wait_for_status(lambda status: status.state is AgentState.STARTING)
    assert agent.request("GET", "/healthz", key=None).status == 200
    assert agent.request("GET", "/readyz", key=None).status == 503

    agent.wait_until_warm()
    assert agent.request("GET", "/readyz", key=None).status == 200
    group = make_group(agent, generation=1, configuration=run)
    for key in (None, b"another run's key"):
        assert agent.request("POST", "/v1/group", group, key=key).status == 401
        assert agent.request("GET", "/v1/status", key=key).status == 401
    assert agent.status().generation == 0

    agent.assign(group)
    agent.wait_for_step(2)
    exposed = agent.request("GET", "/metrics", key=None).body
    assert 'modelscaling_steps_total{name="tiny",namespace="default"}' in exposed
    assert 'modelscaling_memory_peak_bytes{index="0",name="tiny",namespace="default"}' in exposed
    assert "the key of the tests' run" not in agent.log()

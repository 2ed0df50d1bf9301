from __future__ import annotations

import os
import select
import signal
from typing import TYPE_CHECKING

import pytest

from modelscaling.exit_code import ExitCode
from modelscaling.protocol import AgentState, AgentStatus, StopMode
from tests.trainer.agent_builders import make_stop
from tests.trainer.agent_process import form, make_group, make_run, warm_up

if TYPE_CHECKING:
    from pathlib import Path

    from tests.trainer.agent_process import StartAgent

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]


CHECKPOINT = {"volume": {"emptyDir": {}}, "everySteps": 100_000}
ENDLESS = 1_000_000
MANY = 1000
"""Steps that a test can watch to their end, and that take longer than it may stand still."""


def test_sigterm_saves_and_a_second_run_goes_on_at_that_step(
    start: StartAgent, text: Path, tmp_path: Path
) -> None:
    run = make_run(text, steps=ENDLESS, checkpoint=CHECKPOINT)
    checkpoints = tmp_path / "checkpoints"
    first = start(run, checkpoints=checkpoints, grace_s=26)
    warm_up(first)
    form(first, generation=1, run=run)
    first.wait_for_step(3)

    first.terminate()

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


def test_a_second_sigterm_does_not_wait_for_the_others(start: StartAgent, text: Path) -> None:
    run = make_run(text, steps=ENDLESS)
    agent = start(run, grace_s=600)
    warm_up(agent)
    form(agent, generation=1, run=run)
    agent.wait_for_step(1)
    agent.terminate()
    leaving = agent.wait_for_status(lambda status: status.is_leaving)

    agent.terminate()

    assert agent.wait_for_exit(20) == ExitCode.INTERRUPTED
    assert leaving.state is AgentState.TRAINING


def test_an_agent_without_a_group_stops_at_once(
    start: StartAgent, text: Path, tmp_path: Path
) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    os.mkfifo(tokenizer)  # nobody writes to it, so that its worker starts without an end
    changes = {"data__tokenizer": {"file": str(tokenizer)}, "model__vocabularySize": 256}
    agent = start(make_run(text, steps=ENDLESS, **changes))
    agent.wait_for_status(lambda status: status.state is AgentState.STARTING)

    agent.terminate()

    assert agent.wait_for_exit(10) == ExitCode.INTERRUPTED
    assert agent.report().failure is None


def test_workers_that_cannot_save_in_time_are_killed(start: StartAgent, text: Path) -> None:
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


def test_the_death_of_an_agent_ends_its_workers(start: StartAgent, text: Path) -> None:
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


def test_agents_form_a_group_and_form_it_anew_with_one_more(start: StartAgent, text: Path) -> None:
    run = make_run(text, steps=MANY)
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
    assert reports[0].progress.step == MANY
    assert [report.progress for report in reports[1:]] == [None, None]
    assert "rank 2" in third.log()


def test_a_released_agent_leaves_and_the_others_wait_for_a_new_group(
    start: StartAgent, text: Path
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


def test_a_group_whose_pod_dies_waits_for_the_next_one(start: StartAgent, text: Path) -> None:
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
    agent = start(make_run(tmp_path / "nothing/*.txt", steps=10))

    assert agent.wait_for_exit() == ExitCode.CONFIGURATION
    failure = agent.report().failure
    assert failure is not None
    assert failure.exit_code == ExitCode.CONFIGURATION
    assert "nothing/*.txt" in failure.message


def test_a_pod_whose_volume_cannot_be_read_is_not_warm_before_it_can(
    start: StartAgent, text: Path, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    _make_unreadable(volume)
    agent = start(make_run(text, steps=ENDLESS, checkpoint=CHECKPOINT), checkpoints=volume)

    waits = agent.wait_for_status(lambda status: status.failure is not None)
    volume.unlink()
    warm = agent.wait_for_status(lambda status: status.state is AgentState.WARM)

    assert waits.state is AgentState.STARTING
    assert waits.failure is not None
    assert waits.failure.reason == "CheckpointFailed"
    assert f"the checkpoints in '{volume}' cannot be read" in waits.failure.message
    assert warm.failure is None
    assert warm.worker_failures == 0


def test_a_worker_of_a_group_waits_for_a_volume_that_cannot_be_read(
    start: StartAgent, text: Path, tmp_path: Path
) -> None:
    run = make_run(text, steps=ENDLESS, checkpoint=CHECKPOINT)
    volume = tmp_path / "volume"
    volume.mkdir()
    agent = start(run, checkpoints=volume, processes=2)
    warm_up(agent)
    form(agent, generation=1, run=run)
    agent.wait_for_step(3)
    volume.rename(tmp_path / "away")
    _make_unreadable(volume)
    agent.kill_worker(1)
    waits = agent.wait_for_status(lambda status: status.attempt >= 3)
    volume.unlink()
    goes_on = agent.wait_for_status(lambda status: status.state is AgentState.TRAINING)

    assert waits.state is AgentState.FORMING
    assert goes_on.worker_failures == 1


def test_a_run_waits_for_its_checkpoint_and_goes_on_once_that_is_there(
    start: StartAgent, text: Path, tmp_path: Path
) -> None:
    run = make_run(text, steps=ENDLESS, checkpoint=CHECKPOINT)
    saved, volume = tmp_path / "saved", tmp_path / "volume"
    for directory in (saved, volume):
        directory.mkdir()
    before = start(run, checkpoints=saved)
    warm_up(before)
    form(before, generation=1, run=run)
    before.wait_for_step(3)
    assert before.request("POST", "/v1/stop", make_stop()).status == 202
    before.wait_for_exit()
    progress = before.report().progress
    assert progress is not None

    after = start(run, checkpoints=volume)
    warm_up(after)
    form(after, generation=2, run=run, checkpoint_step=progress.checkpoint_step)
    waits = after.wait_for_status(lambda status: status.failure is not None)
    volume.rmdir()
    saved.rename(volume)
    goes_on = after.wait_for_status(lambda status: status.progress is not None)

    assert waits.state is AgentState.FORMING
    assert waits.progress is None
    assert waits.failure is not None
    assert f"has a checkpoint of step {progress.step}" in waits.failure.message
    assert goes_on.progress is not None
    assert goes_on.progress.step > progress.step


def _make_unreadable(path: Path) -> None:
    """Have nobody read a directory, not even root."""
    path.symlink_to(path)


def test_agents_that_were_told_to_stop_save_once_there_is_room(
    start: StartAgent, text: Path, tmp_path: Path
) -> None:
    run = make_run(text, steps=ENDLESS, checkpoint=CHECKPOINT)
    volume = tmp_path / "volume"
    volume.mkdir()
    agents = [start(run, index=index, checkpoints=volume) for index in range(2)]
    warm_up(*agents)
    form(*agents, generation=1, run=run)
    agents[0].wait_for_step(3)
    volume.rename(tmp_path / "away")
    volume.write_text("in the place of the directory")
    for agent in agents:
        assert agent.request("POST", "/v1/stop", make_stop()).status == 202
    tries = [agent.wait_for_status(lambda status: status.attempt >= 2) for agent in agents]
    volume.unlink()
    codes = [agent.wait_for_exit() for agent in agents]

    assert [status.state for status in tries] == [AgentState.STOPPING] * 2
    assert codes == [ExitCode.INTERRUPTED] * 2
    report = agents[0].report()
    assert report.failure is None
    assert report.progress is not None
    assert report.progress.checkpoint_step == report.progress.step


def test_workers_that_cannot_be_started_end_the_agent_with_the_reason(
    start: StartAgent, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "torch.py").write_text("raise ImportError('no such library')")
    monkeypatch.setenv("PYTHONPATH", str(broken))

    agent = start(make_run(text, steps=10))

    assert agent.wait_for_exit() == ExitCode.CRASHED
    failure = agent.report().failure
    assert failure is not None
    assert failure.reason == "WorkerDied"
    assert "ImportError: no such library" in failure.message


def test_an_agent_says_how_ready_it_is_and_obeys_only_the_key(
    start: StartAgent, text: Path, tmp_path: Path
) -> None:
    run = make_run(text, steps=ENDLESS, checkpoint=CHECKPOINT)
    volume = tmp_path / "volume"
    _make_unreadable(volume)
    agent = start(run, checkpoints=volume)
    agent.wait_for_status(lambda status: status.state is AgentState.STARTING)
    assert agent.request("GET", "/healthz", key=None).status == 200
    assert agent.request("GET", "/readyz", key=None).status == 503

    volume.unlink()
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

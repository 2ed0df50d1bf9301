"""Real agents on this machine, and how the tests, in the operator's place, talk to them."""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from modelscaling.mesh import Mesh
from modelscaling.protocol import (
    AGENT_PORT,
    SIGNATURE_HEADER,
    AgentEnvironment,
    AgentState,
    AgentStatus,
    GroupAssignment,
    Member,
    TerminationReport,
    sign,
)
from modelscaling_trainer.agent.settings import AgentOverride
from tests.trainer.agent_builders import RUN_UID, make_configuration

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelscaling.configuration import Message, RunConfiguration


class StartAgent(Protocol):
    """Starts an agent that ends with the test; the options are those of `start_agent`."""

    def __call__(self, configuration: RunConfiguration, **options: Any) -> AgentProcess: ...


KEY = b"the key of the tests' run"
_HTTP_TIMEOUT_S = 10
_POLL_S = 0.02
_births = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An agent's answer."""

    status: int
    body: str


@dataclass(slots=True, kw_only=True)
class AgentProcess:
    """One agent with its workers."""

    index: int
    processes: int
    address: str
    directory: Path
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def member(self) -> Member:
        """The pod as a member of a group."""
        return Member(index=self.index, address=self.address, processes=self.processes)

    def request(
        self, method: str, path: str, message: Message | None = None, *, key: bytes | None = KEY
    ) -> Answer:
        """Send a request, signed with `key` if there is one."""
        body = message.model_dump_json().encode() if message else b""
        headers = {SIGNATURE_HEADER: sign(key, method=method, path=path, body=body)} if key else {}
        request = urllib.request.Request(
            f"http://{self.address}:{AGENT_PORT}{path}",
            method=method,
            data=body or None,
            headers=headers,
        )
        try:
            with urllib.request.urlopen(request, timeout=_HTTP_TIMEOUT_S) as response:
                return Answer(status=response.status, body=response.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(status=error.code, body=error.read().decode())

    def status(self) -> AgentStatus:
        """Return what the agent says of itself."""
        return AgentStatus.model_validate_json(self.request("GET", "/v1/status").body)

    def wait_for_status(
        self, holds: Callable[[AgentStatus], bool], *, timeout_s: float = 90
    ) -> AgentStatus:
        """Return the status as soon as it `holds`; fail with the agent's log at the timeout."""
        deadline = time.monotonic() + timeout_s
        status: AgentStatus | None = None
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                status = self.status()
            except OSError:
                pass  # it does not listen yet
            else:
                if holds(status):
                    return status
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_POLL_S)
        raise AssertionError(f"agent {self.index} is at {status}\n{self.log()}")

    def wait_until_warm(self) -> AgentStatus:
        """Return the status once the workers wait for a group."""
        return self.wait_for_status(lambda status: status.state is AgentState.WARM)

    def wait_for_step(self, step: int) -> AgentStatus:
        """Return the status once so many steps are done."""
        return self.wait_for_status(
            lambda status: status.progress is not None and status.progress.step >= step
        )

    def assign(self, assignment: GroupAssignment) -> Answer:
        """Send an assignment."""
        return self.request("POST", "/v1/group", assignment)

    def zygote_pid(self) -> int:
        """Return the number of the process that makes its workers."""
        (zygote,) = _children(self.process.pid)
        return zygote

    def worker_pids(self) -> list[int]:
        """Return the numbers of the workers that its zygote has made."""
        return _children(self.zygote_pid())

    def kill_worker(self, local_rank: int = 0, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to one of the workers that were made first."""
        os.kill(self.worker_pids()[local_rank], number)

    def terminate(self) -> None:
        """Send SIGTERM, as the kubelet does."""
        self.process.send_signal(signal.SIGTERM)

    def wait_for_exit(self, timeout_s: float = 90) -> int:
        """Return the exit code once the agent has ended."""
        return self.process.wait(timeout_s)

    def report(self) -> TerminationReport:
        """Return what it has left in its termination message."""
        return TerminationReport.model_validate_json((self.directory / "termination").read_text())

    def log(self) -> str:
        """Return all that it has logged."""
        return (self.directory / "log").read_text()

    def deaths(self) -> set[tuple[int, str]]:
        """Return the ranks of the workers whose death it has logged, and in what words."""
        said = re.findall(r'reason=WorkerDied failure="(.*)" rank=(\d+)$', self.log(), re.MULTILINE)
        return {(int(rank), words) for words, rank in said}


def start_agent(
    directory: Path,
    configuration: RunConfiguration,
    *,
    index: int = 0,
    processes: int = 1,
    checkpoints: Path | None = None,
    grace_s: float = 60,
) -> AgentProcess:
    """Start an agent whose files are in `directory`; `checkpoints` is shared with others."""
    directory.mkdir(parents=True)
    (directory / "run.json").write_text(configuration.model_dump_json())
    (directory / "key").write_bytes(KEY)
    address = _new_address()
    environment = {
        AgentEnvironment.NAMESPACE: "default",
        AgentEnvironment.NAME: "tiny",
        AgentEnvironment.RUN_UID: RUN_UID,
        AgentEnvironment.INDEX: str(index),
        AgentEnvironment.PROCESSES: str(processes),
        AgentEnvironment.ADDRESS: address,
        AgentOverride.CONFIGURATION_FILE: str(directory / "run.json"),
        AgentOverride.KEY_FILE: str(directory / "key"),
        AgentOverride.SCRATCH_DIRECTORY: str(directory / "scratch"),
        AgentOverride.TERMINATION_LOG: str(directory / "termination"),
        AgentOverride.BIND_ADDRESS: address,
        AgentOverride.TERMINATION_GRACE_SECONDS: str(grace_s),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    if checkpoints:
        environment[AgentOverride.CHECKPOINT_DIRECTORY] = str(checkpoints)
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "modelscaling_trainer.agent"],
            stderr=log,
            env={**os.environ, **environment},
        )
    return AgentProcess(
        index=index, processes=processes, address=address, directory=directory, process=process
    )


def make_group(
    *agents: AgentProcess,
    generation: int,
    configuration: RunConfiguration,
    leaving: tuple[AgentProcess, ...] = (),
    checkpoint_step: int | None = None,
) -> GroupAssignment:
    """Return the assignment that puts these agents into one group, which others leave, of a run
    that is known to have a checkpoint.
    """
    return GroupAssignment(
        run_uid=RUN_UID,
        generation=generation,
        members=tuple(agent.member for agent in agents),
        mesh=Mesh(dataReplicate=sum(agent.processes for agent in agents)),
        configuration=configuration,
        leaving=tuple(agent.member for agent in leaving),
        checkpoint_step=checkpoint_step,
    )


def form(*agents: AgentProcess, generation: int, run: RunConfiguration, **options: Any) -> None:
    """Put the agents into one group, those that leave it included."""
    group = make_group(*agents, generation=generation, configuration=run, **options)
    for agent in (*agents, *options.get("leaving", ())):
        answer = agent.assign(group)
        assert answer.status == HTTPStatus.ACCEPTED, answer


def warm_up(*agents: AgentProcess) -> None:
    """Wait until all of them wait for a group."""
    for agent in agents:
        agent.wait_until_warm()


def make_run(text: Path, *, steps: int, **changes: Any) -> RunConfiguration:
    """Return a run of so many steps with a global batch that 1, 2 and 3 processes can share."""
    return make_configuration(
        data__text={"path": str(text)},
        model__layers=1,
        model__hiddenSize=32,
        training__globalBatchSize=6,
        training__tokens=steps * 6 * 64,
        training__precision="Float32",
        training__compile="Never",
        training__validateEverySteps=0,
        **changes,
    )


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _new_address() -> str:
    """Return a loopback address that no other agent has had, so that its port is free there."""
    third, last = divmod(next(_births), 255)
    return f"{_own_network()}.{third}.{last}"


@cache
def _own_network() -> str:
    """Return a part of the loopback network, 127.n, that is this process' alone, among all that run
    tests on this machine: it listens at an address there as long as it runs.
    """
    for number in range(2, 256):
        with suppress(OSError):
            socket.create_server((f"127.{number}.255.1", AGENT_PORT)).detach()
            return f"127.{number}"
    raise AssertionError("all of the loopback network is taken")

"""A job of torchrun's elastic agents, one for each pod, on this machine.

Its time-outs are tuned: the defaults wait 30 s for late nodes in each meeting, 15 s for a lost one
and half an hour for a collective, and a node that joins breaks the store that agents and workers
share. The first agent hosts the store and is never the one that fails, as torchrun would not get
over that.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from bench import step_log
from bench.processes import ProcessMark
from modelscaling.api.training import Precision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from bench.case import Case
    from bench.outage import Outage
    from bench.step_log import StepMoment

_ADDRESS = "127.0.0.1"
_MOST_PODS = 3
_COLLECTIVE_TIMEOUT_S = 10
"""Some steps of S of three processes on two cores; below, slow ones would be taken as lost."""
_RENDEZVOUS = {
    "join_timeout": 60,
    "last_call_timeout": 1,
    "keep_alive_interval": 1,
    "keep_alive_max_attempt": 3,
    "read_timeout": 60,
}
_DEADLINE_S = 120.0
_SETTLED_STEPS = 3
"""What a new group does before the next thing happens to it."""
_POLL_S = 0.2
"""Times are the workers' own; to look more often would only cost them."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Agent:
    process: subprocess.Popen[bytes]
    mark: ProcessMark

    def worker(self) -> int | None:
        """Return its worker's pid, where it has one."""
        return next(iter(self.mark.pids() - {self.process.pid}), None)

    def end(self) -> None:
        self.mark.end()
        self.process.wait()


@contextmanager
def torchrun(
    case: Case, precision: Precision, directory: Path, environment: Mapping[str, str]
) -> Iterator[Torchrun]:
    """Start a job of two pods, wait until it trains, and end all its processes at the end.
    `directory` is empty and best in memory.
    """
    job = Torchrun(case, precision, directory, environment)
    try:
        job.begin()
        yield job
    finally:
        job.end()


class Torchrun:
    """The job; see `bench.outage.Job` for what its methods do."""

    def __init__(
        self, case: Case, precision: Precision, directory: Path, environment: Mapping[str, str]
    ) -> None:
        self._case = case
        self._precision = precision
        self._directory = directory
        self._environment = environment
        self._log = directory / "steps"
        self._log.touch()
        self._read_bytes = 0
        self._known_moments: list[StepMoment] = []
        self._is_sharded = False
        self._port = 0
        self._agents: list[_Agent] = []

    def begin(self) -> None:
        """Start two pods, and wait until they train."""
        since = time.time()
        self._start_two()
        self._wait_for_group(since)

    def end(self) -> None:
        """Kill everything."""
        while self._agents:
            self._agents.pop().end()

    def steps(self) -> int:
        """Return how many steps the job has done."""
        return step_log.furthest_step(self._moments())

    def kill_a_worker(self, pod: int) -> None:
        """Kill a pod's worker, if it has one just now, and don't wait."""
        worker = self._agents[pod].worker()
        if worker is not None:
            os.kill(worker, signal.SIGKILL)

    def kill_worker(self) -> Outage:
        """Kill the last pod's worker."""
        failed_time = time.time()
        self.kill_a_worker(-1)
        return self._wait_for_group(failed_time, has_failed=True)

    def join(self) -> tuple[Outage, float]:
        """Start a pod."""
        since = time.time()
        self._start_agent()
        moments, resumed = self._wait_for_resumption(since)
        seconds = resumed.time - since
        self._settle(resumed)
        return step_log.outage(moments, resumed), seconds

    def leave(self) -> Outage:
        """Tell the last pod's agent to end."""
        since = time.time()
        agent = self._agents.pop()
        agent.process.terminate()
        try:
            return self._wait_for_group(since)
        finally:
            agent.end()

    def kill_pod(self) -> Outage:
        """Kill the last pod's agent and worker."""
        failed_time = time.time()
        self._agents.pop().end()
        return self._wait_for_group(failed_time, has_failed=True)

    def lose_node(self) -> Outage:
        """Stop the last pod's agent and worker."""
        agent = self._agents.pop()
        failed_time = time.time()
        agent.mark.send(signal.SIGSTOP)
        try:
            return self._wait_for_group(failed_time, has_failed=True)
        finally:
            agent.end()

    def shard(self) -> Outage:
        """End all, and start the script with other arguments: nothing less can change a mesh."""
        since = time.time()
        for agent in self._agents:
            agent.process.terminate()
        for agent in self._agents:
            agent.process.wait(_DEADLINE_S)
        self.end()
        self._is_sharded = True
        self._start_two()
        return self._wait_for_group(since)

    def _start_two(self) -> None:
        with socket.create_server((_ADDRESS, 0)) as server:
            self._port = server.getsockname()[1]
        for _ in range(2):
            self._start_agent()

    def _start_agent(self) -> None:
        mark = ProcessMark()
        conf = _RENDEZVOUS | {"is_host": int(not self._agents)}
        command = [
            *(sys.executable, "-m", "torch.distributed.run"),
            f"--nnodes=1:{_MOST_PODS}",
            "--nproc-per-node=1",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={_ADDRESS}:{self._port}",
            "--rdzv-id=bench",
            "--rdzv-conf=" + ",".join(f"{name}={value}" for name, value in conf.items()),
            "--max-restarts=1000000",
            "--monitor-interval=0.1",
            f"--local-addr={_ADDRESS}",
            *("-m", "bench.torchrun_script", self._case.name),
            f"--directory={self._directory}",
            f"--timeout-seconds={_COLLECTIVE_TIMEOUT_S}",
            *(["--bfloat16"] if self._precision is Precision.BFLOAT16 else []),
            *(["--sharded"] if self._is_sharded else []),
        ]
        environment = {
            **self._environment,
            **mark.environment(),
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        with self._log.open("ab") as log, (self._directory / "errors").open("ab") as errors:
            process = subprocess.Popen(command, stdout=log, stderr=errors, env=environment)
        self._agents.append(_Agent(process=process, mark=mark))

    def _moments(self) -> list[StepMoment]:
        """Return what all workers have written of their steps so far."""
        with self._log.open("rb") as log:
            log.seek(self._read_bytes)
            # A last line that is still being written is for the next time.
            new, end, _ = log.read().rpartition(b"\n")
        self._read_bytes += len(new) + len(end)
        self._known_moments += step_log.parse(new.decode())
        return self._known_moments

    def _wait_for_group(self, since: float, *, has_failed: bool = False) -> Outage:
        moments, resumed = self._wait_for_resumption(since)
        self._settle(resumed)
        return step_log.outage(moments, resumed, failed_time=since if has_failed else None)

    def _wait_for_resumption(self, since: float) -> tuple[list[StepMoment], StepMoment]:
        """Wait for the first step of all pods in a group that forms after `since`."""
        world = len(self._agents)

        def resumption() -> tuple[list[StepMoment], StepMoment] | None:
            moments = self._moments()
            resumed = step_log.first_step_since(moments, since, world=world)
            return None if resumed is None else (moments, resumed)

        return self._wait_for(resumption, f"no step of {world} processes")

    def _settle(self, resumed: StepMoment) -> None:
        goal = resumed.step + _SETTLED_STEPS
        self._wait_for(lambda: self.steps() >= goal or None, f"step {goal} was not reached")

    def _wait_for(self, look: Callable[[], _T | None], otherwise: str) -> _T:
        deadline = time.monotonic() + _DEADLINE_S
        while (found := look()) is None:
            if time.monotonic() > deadline:
                errors = (self._directory / "errors").read_text()[-2000:]
                raise TimeoutError(f"torchrun: {otherwise} within {_DEADLINE_S:.0f} s\n{errors}")
            time.sleep(_POLL_S)
        return found

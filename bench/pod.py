"""One of our agents as a pod of its own on this machine, and what the operator says to it."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from bench.processes import ProcessMark, children
from modelscaling.mesh import Mesh
from modelscaling.protocol import (
    MESH_FILE,
    SIGNATURE_HEADER,
    AgentEnvironment,
    AgentStatus,
    GroupAssignment,
    Member,
    sign,
)
from modelscaling_trainer.agent.settings import AgentOverride

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from modelscaling.configuration import RunConfiguration

RUN_UID = "bench"
_KEY = b"of a run on this machine"
_ADDRESS = "127.0.0.1"
_EXIT_TIMEOUT_S = 60.0
_ANSWER_TIMEOUT_S = 10.0


class PodError(Exception):
    """An agent that refuses what it was told."""


class Pod:
    """A pod with one worker."""

    def __init__(
        self,
        index: int,
        *,
        configuration: RunConfiguration,
        mesh: Mesh,
        directory: Path,
        environment: Mapping[str, str],
    ) -> None:
        """Start it; `mesh` is what it prepares for, and `directory` is made."""
        self.index = index
        self.started_time = time.time()
        self.mark = ProcessMark()
        self._directory = directory
        with socket.create_server((_ADDRESS, 0)) as server:
            self._port = server.getsockname()[1]
        directory.mkdir()
        (directory / "run.json").write_text(configuration.model_dump_json())
        (directory / MESH_FILE.rpartition("/")[2]).write_bytes(TypeAdapter(Mesh).dump_json(mesh))
        (directory / "key").write_bytes(_KEY)
        with (directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "modelscaling_trainer.agent"],
                stderr=log,
                env={**environment, **self._environment(), **self.mark.environment()},
            )

    @property
    def member(self) -> Member:
        """The pod in a group."""
        return Member(index=self.index, address=_ADDRESS, port=self._port, processes=1)

    def status(
        self, *, after: int | None = None, timeout_s: float = _ANSWER_TIMEOUT_S
    ) -> AgentStatus:
        """Return what its agent says of itself, once there is news after a version if one is given.

        Raises:
            OSError: it does not answer.
        """
        path = "/v1/status" if after is None else f"/v1/status?after={after}"
        _, answer = self._request("GET", path, timeout_s=timeout_s)
        return AgentStatus.model_validate_json(answer)

    def assign(self, assignment: GroupAssignment) -> None:
        """Tell its agent who trains together.

        Raises:
            OSError: it does not answer.
            PodError: it refuses.
        """
        body = assignment.model_dump_json().encode()
        status, answer = self._request("POST", "/v1/group", body)
        if status != HTTPStatus.ACCEPTED:
            raise PodError(f"pod {self.index} answers {status}: {answer.decode()}")

    def worker(self) -> int | None:
        """Return its worker's pid, where it has one: a child of the process that forks them."""
        workers = (worker for child in children(self.process.pid) for worker in children(child))
        return next(workers, None)

    def wait_for_exit(self) -> int:
        """Return its exit code; `subprocess.TimeoutExpired` where it does not end."""
        return self.process.wait(_EXIT_TIMEOUT_S)

    def end(self) -> None:
        """Kill all its processes."""
        self.mark.end()
        self.process.wait()

    def last_log(self) -> str:
        """Return the end of what it has logged."""
        return (self._directory / "log").read_text()[-2000:]

    def _request(
        self, method: str, path: str, body: bytes = b"", *, timeout_s: float = _ANSWER_TIMEOUT_S
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(_ADDRESS, self._port, timeout=timeout_s)
        headers = {SIGNATURE_HEADER: sign(_KEY, method=method, path=path, body=body)}
        try:
            connection.request(method, path, body=body or None, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()
        except http.client.HTTPException as error:
            raise ConnectionError(f"pod {self.index}: {error!r}") from error
        finally:
            connection.close()

    def _environment(self) -> dict[str, str]:
        return {
            AgentEnvironment.NAMESPACE: "bench",
            AgentEnvironment.NAME: "bench",
            AgentEnvironment.RUN_UID: RUN_UID,
            AgentEnvironment.INDEX: str(self.index),
            AgentEnvironment.PROCESSES: "1",
            AgentEnvironment.ADDRESS: _ADDRESS,
            AgentOverride.CONFIGURATION_FILE: str(self._directory / "run.json"),
            AgentOverride.KEY_FILE: str(self._directory / "key"),
            AgentOverride.SCRATCH_DIRECTORY: str(self._directory / "scratch"),
            AgentOverride.TERMINATION_LOG: str(self._directory / "termination"),
            AgentOverride.BIND_ADDRESS: _ADDRESS,
            AgentOverride.PORT: str(self._port),
            "GLOO_SOCKET_IFNAME": "lo",
        }

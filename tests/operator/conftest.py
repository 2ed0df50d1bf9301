"""Fixtures of the operator's tests: a fake API server, and, on a real cluster, the operator as a
process of this machine.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from devcluster.waiting import wait_until
from modelscaling_operator.kube import Kube
from tests.live_run import LiveRun
from tests.operator.fake_api import FakeApi

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from demo.kubectl import Cluster

TRAINER_IMAGE = os.environ.get("TRAINER_IMAGE", "localhost/modelscaling-trainer:dev")
LEASE_DURATION_S = 30.0
"""An operator whose renewal is late ends, and here nobody starts the next one."""
_START_S = 30
_STOP_S = 20


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("", 0))
        port: int = server.getsockname()[1]
        return port


@dataclass(slots=True)
class OperatorProcess:
    """The operator, started on this machine for one namespace."""

    kubeconfig: Path
    namespace: str
    log: Path
    lease_duration_s: float = LEASE_DURATION_S
    port: int = field(default_factory=_free_port)
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "modelscaling_operator",
                    f"--namespaces={self.namespace}",
                    f"--trainer-image={TRAINER_IMAGE}",
                    f"--metrics-port={self.port}",
                    f"--lease-namespace={self.namespace}",
                    f"--lease-duration-s={self.lease_duration_s:g}",
                    "--poll-interval-s=0.5",
                ],
                stderr=log,
                env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
            )
        wait_until(
            self._listens,
            what="an answer of the operator",
            timeout_s=_START_S,
            hint=self.log.read_text,
        )

    def end(self, number: signal.Signals) -> None:
        """Send it a signal, and wait for its end."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(timeout=_STOP_S)

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        with socket.socket() as probe:
            probe.settimeout(0.2)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def _serving(
    cluster: Cluster, namespace: str, log: Path, lease_duration_s: float = LEASE_DURATION_S
) -> Iterator[OperatorProcess]:
    process = OperatorProcess(
        kubeconfig=cluster.kubeconfig,
        namespace=namespace,
        log=log,
        lease_duration_s=lease_duration_s,
    )
    process.start()
    yield process
    process.end(signal.SIGTERM)
    assert "Traceback" not in log.read_text()


def _applying(cluster: Cluster, namespace: str) -> Iterator[Callable[..., LiveRun]]:
    runs: list[LiveRun] = []

    def apply_run(name: str, spec: dict[str, Any]) -> LiveRun:
        run = LiveRun(cluster=cluster, namespace=namespace, name=name)
        run.apply(spec)
        runs.append(run)
        return run

    yield apply_run
    for run in runs:
        run.delete()


@pytest_asyncio.fixture
async def api() -> AsyncIterator[FakeApi]:
    """A fake API server."""
    async for server in FakeApi().serve():
        yield server


@pytest_asyncio.fixture
async def kube(api: FakeApi) -> AsyncIterator[Kube]:
    """A connection to it."""
    client = Kube(api.configuration)
    yield client
    await client.close()


@pytest.fixture
def lease_duration_s() -> float:
    """How long the lease of the test's operator lasts."""
    return LEASE_DURATION_S


@pytest.fixture
def operator(
    cluster: Cluster, crd: None, namespace: str, tmp_path: Path, lease_duration_s: float
) -> Iterator[OperatorProcess]:
    """A running operator that serves the test's namespace."""
    del crd
    yield from _serving(cluster, namespace, tmp_path / "operator.log", lease_duration_s)


@pytest.fixture
def apply(
    cluster: Cluster, operator: OperatorProcess, namespace: str
) -> Iterator[Callable[..., LiveRun]]:
    """Applies runs; they are deleted before the operator ends."""
    del operator
    yield from _applying(cluster, namespace)


@pytest.fixture(scope="session")
def shared_namespace(
    cluster: Cluster, crd: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A namespace with an operator, for tests whose runs start nothing."""
    del crd
    name = f"test-{uuid.uuid4().hex[:8]}"
    cluster.run("kubectl", "create", "namespace", name)
    cluster.run(
        "kubectl", "label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted"
    )
    log = tmp_path_factory.mktemp("operator") / "operator.log"
    for _ in _serving(cluster, name, log):
        yield name
    cluster.run("kubectl", "delete", "namespace", name, "--timeout=120s")


@pytest.fixture
def apply_shared(cluster: Cluster, shared_namespace: str) -> Iterator[Callable[..., LiveRun]]:
    """Applies runs to the shared namespace; they are deleted after the test."""
    yield from _applying(cluster, shared_namespace)

"""A cluster on this machine: pods are real agents with addresses of their own on the loopback, and
the operator's real loop looks after them. Only the API server is in memory.
"""

from __future__ import annotations

import asyncio
import copy
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

from modelscaling.protocol import CONFIGURATION_FILE, GRACE_PERIOD_S
from modelscaling_operator.agents import Agents
from modelscaling_operator.decision import Policy
from modelscaling_operator.dependencies import key_of
from modelscaling_operator.health import Vitals
from modelscaling_operator.kube import (
    CONFIG_MAPS,
    EVENTS,
    PODS,
    RUNS,
    SECRETS,
    ConflictError,
    Kube,
    NotFoundError,
    Resource,
)
from modelscaling_operator.loop import RunLoop, Surroundings
from modelscaling_operator.metrics import Metrics
from modelscaling_operator.observation import Pod, parse_pod, parse_status
from modelscaling_trainer.agent.settings import AgentOverride
from tests.operator.world import RUN

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelscaling.api.status import ModelScalingStatus

Json = dict[str, Any]


@dataclass(slots=True)
class LocalPod:
    """A pod and its process."""

    body: Json
    process: asyncio.subprocess.Process
    termination_log: Path

    def kill_worker(self) -> None:
        """Kill the worker that was made last: a child of the process that makes them."""
        os.kill(_with_children(self.process.pid)[-1], signal.SIGKILL)

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to the agent and all its workers."""
        for pid in _with_children(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


@dataclass(slots=True)
class LocalCluster:
    """The cluster, with one run."""

    directory: Path
    spec: Json
    generation: int = 1
    version: int = 1
    status: Json = field(default_factory=dict)
    objects: dict[str, Json] = field(default_factory=dict)
    pods: dict[str, LocalPod] = field(default_factory=dict)
    births: int = 0
    written: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the status was written, or pods have changed."""
    loop: RunLoop | None = None
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _agents: Agents | None = None

    async def __aenter__(self) -> Self:
        """Start the operator."""
        self._agents = Agents()
        self.loop = RunLoop(
            RUN,
            Surroundings(
                kube=LocalKube(self),
                agents=self._agents,
                metrics=Metrics(),
                vitals=Vitals(lambda: 0.0),
                policy=Policy(trainer_image="trainer", poll_s=2),
                pull_policy="Never",
            ),
            body=self.body,
            pods=self._parsed_pods,
        )
        self._tasks = [asyncio.create_task(self.loop.run())]
        return self

    async def __aexit__(self, *_: object) -> None:
        """End everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pod in self.pods.values():
            pod.kill(signal.SIGKILL)
            await pod.process.wait()
        assert self._agents is not None
        await self._agents.close()

    def edit(self, **changes: Any) -> None:
        """Change fields of the spec, as `kubectl edit` does."""
        self.spec = {**self.spec, **changes}
        self.generation += 1
        self._changed()

    async def wait_for(
        self, holds: Callable[[ModelScalingStatus], bool], *, timeout_s: float = 120
    ) -> ModelScalingStatus:
        """Return the run's status once it `holds`."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not holds(status := parse_status(self.status)):
            if asyncio.get_running_loop().time() > deadline:
                logs = {name: self.log(name)[-3000:] for name in self.pods}
                raise AssertionError(f"the status is {self.status}; logs: {logs}")
            self.written.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self.written.wait()
        return status

    def log(self, name: str) -> str:
        """Return what a pod has logged."""
        return (self.pods[name].termination_log.parent / "log").read_text()

    def body(self) -> Json:
        """Return the ModelScaling."""
        return {
            "metadata": {
                "namespace": RUN.namespace,
                "name": RUN.name,
                "uid": RUN.uid,
                "generation": self.generation,
                "resourceVersion": str(self.version),
            },
            "spec": self.spec,
            "status": self.status,
        }

    async def create(self, body: Json) -> None:
        """Start a pod."""
        self.births += 1
        name, uid = body["metadata"]["name"], f"pod-{self.births}"
        address = f"127.1.{self.births}.1"
        directory = self.directory / uid
        directory.mkdir(parents=True)
        configuration = self.objects[CONFIG_MAPS.path(RUN.namespace, RUN.config_map_name)]
        for file, content in configuration["data"].items():
            (directory / file).write_text(content)
        secret = self.objects[SECRETS.path(RUN.namespace, RUN.secret_name)]
        (directory / "key").write_bytes(key_of(secret))
        container = body["spec"]["containers"][0]
        environment = {v["name"]: v.get("value", address) for v in container["env"]}
        overrides = {
            AgentOverride.CONFIGURATION_FILE: directory / CONFIGURATION_FILE.rpartition("/")[2],
            AgentOverride.KEY_FILE: directory / "key",
            AgentOverride.SCRATCH_DIRECTORY: directory / "scratch",
            AgentOverride.TERMINATION_LOG: directory / "termination",
            AgentOverride.BIND_ADDRESS: address,
        }
        environment |= {name.value: str(value) for name, value in overrides.items()}
        environment |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        with (directory / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "modelscaling_trainer.agent",
                stderr=log,
                env={**os.environ, **environment},
            )
        body = copy.deepcopy(body)
        body["metadata"] |= {
            "uid": uid,
            "creationTimestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        body["status"] = {"phase": "Running", "podIP": address}
        pod = self.pods[name] = LocalPod(body, process, directory / "termination")
        self._tasks.append(asyncio.create_task(self._await_end(name, pod)))
        self._changed()

    def delete(self, name: str, *, force: bool = False) -> None:
        """Delete a pod: with its grace period, or at once."""
        pod = self.pods[name]
        if force:
            pod.kill(signal.SIGKILL)
            del self.pods[name]
        elif "deletionTimestamp" not in pod.body["metadata"]:
            deadline = datetime.now(UTC) + timedelta(seconds=GRACE_PERIOD_S)
            pod.body["metadata"]["deletionTimestamp"] = deadline.isoformat()
            with suppress(ProcessLookupError):
                pod.process.send_signal(signal.SIGTERM)
        self._changed()

    def _parsed_pods(self) -> tuple[Pod, ...]:
        parsed = (parse_pod(pod.body) for pod in self.pods.values())
        return tuple(pod for pod in parsed if pod is not None)

    def _changed(self) -> None:
        self.written.set()
        if self.loop is not None:
            self.loop.wake.set()

    async def _await_end(self, name: str, pod: LocalPod) -> None:
        """Tell how a pod has ended, as its kubelet does."""
        code = await pod.process.wait()
        if self.pods.get(name) is pod:
            self._tell_end(name, pod, code)

    def _tell_end(self, name: str, pod: LocalPod, code: int) -> None:
        if "deletionTimestamp" in pod.body["metadata"]:
            del self.pods[name]
        else:
            log = pod.termination_log
            ended = {
                "exitCode": code if code >= 0 else 128 - code,
                "reason": "Completed" if code == 0 else "Error",
                "finishedAt": datetime.now(UTC).isoformat(),
                "message": log.read_text() if log.exists() else "",
            }
            pod.body["status"] |= {
                "phase": "Succeeded" if code == 0 else "Failed",
                "containerStatuses": [{"name": "trainer", "state": {"terminated": ended}}],
            }
        self._changed()


class LocalKube(Kube):
    """The API server."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster

    async def get(self, resource: Resource, namespace: str, name: str) -> Json:
        if resource is RUNS:
            return self._cluster.body()
        try:
            return copy.deepcopy(self._cluster.objects[resource.path(namespace, name)])
        except KeyError:
            raise NotFoundError(name) from None

    async def create(self, resource: Resource, body: Json) -> Json:
        if resource is EVENTS:
            return body
        assert resource is PODS
        if body["metadata"]["name"] in self._cluster.pods:
            raise ConflictError(body["metadata"]["name"])
        await self._cluster.create(body)
        return self._cluster.pods[body["metadata"]["name"]].body

    async def apply(self, resource: Resource, body: Json, *, subresource: str = "") -> Json:
        metadata = body["metadata"]
        if resource is not RUNS:
            assert not subresource
            self._cluster.objects[resource.path(metadata["namespace"], metadata["name"])] = body
            return body
        if metadata["resourceVersion"] != str(self._cluster.version):
            raise ConflictError("the object has been modified")
        self._cluster.status = body["status"]
        self._cluster.version += 1
        self._cluster.written.set()
        return self._cluster.body()

    async def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        *,
        uid: str,
        grace_period_s: int | None = None,
    ) -> None:
        assert (resource, namespace) == (PODS, RUN.namespace)
        pod = self._cluster.pods.get(name)
        if pod is None or pod.body["metadata"]["uid"] != uid:
            raise NotFoundError(name)
        is_over = pod.process.returncode is not None
        self._cluster.delete(name, force=grace_period_s == 0 or is_over)


def _with_children(pid: int) -> list[int]:
    """Return a process and all below it."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:  # noqa: PTH123
            children = [int(child) for child in file.read().split()]
    except FileNotFoundError:
        return []
    return [pid, *(below for child in children for below in _with_children(child))]

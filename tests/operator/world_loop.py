"""The operator's real loop on the world in memory, which may kill it before any of its writes."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from modelscaling_operator.agents import AgentError, Agents
from modelscaling_operator.health import Vitals
from modelscaling_operator.identity import INDEX_LABEL, ROLE_LABEL, SPARE
from modelscaling_operator.kube import (
    EVENTS,
    PODS,
    RUNS,
    ConflictError,
    Kube,
    NotFoundError,
    Resource,
)
from modelscaling_operator.loop import RunLoop, Surroundings
from modelscaling_operator.metrics import Metrics
from modelscaling_operator.observation import Silence, parse_status
from tests.operator.world import POLICY, RUN

if TYPE_CHECKING:
    from modelscaling.protocol import AgentStatus, GroupAssignment, StopMode
    from modelscaling_operator.identity import RunIdentity
    from modelscaling_operator.observation import Pod
    from tests.operator.world import World

Json = dict[str, Any]


class OperatorDiedError(BaseException):
    """The operator's process is gone: nothing catches it."""


@dataclass(slots=True)
class Life:
    """How many writes an operator lives for; None lets it live."""

    writes_left: int | None = None
    writes: list[str] = field(default_factory=list)

    def write(self, what: str) -> None:
        """Die before a write, or let it happen."""
        if self.writes_left == 0:
            raise OperatorDiedError(what)
        if self.writes_left is not None:
            self.writes_left -= 1
        self.writes.append(what)


class WorldKube(Kube):
    """The API server of the world in memory."""

    def __init__(self, world: World, life: Life, objects: dict[str, Json]) -> None:
        self._world = world
        self._life = life
        self._objects = objects

    async def get(self, resource: Resource, namespace: str, name: str) -> Json:
        """Return an object."""
        if resource is RUNS:
            return run_body(self._world)
        try:
            return copy.deepcopy(self._objects[resource.path(namespace, name)])
        except KeyError:
            raise NotFoundError(name) from None

    async def create(self, resource: Resource, body: Json) -> Json:
        """Create a pod; Events are forgotten."""
        name = body["metadata"].get("name", "")
        self._life.write(f"create {resource.plural} {name}")
        if resource is EVENTS:
            return body
        assert resource is PODS
        if name in self._world.pods:
            raise ConflictError(name)
        image = body["spec"]["containers"][0]["image"]
        self._world.create(int(body["metadata"]["labels"][INDEX_LABEL]), image)
        pod = self._world.pods[name]
        known = {"uid": pod.uid, "creationTimestamp": pod.created.isoformat()}
        return {**body, "metadata": {**body["metadata"], **known}}

    async def apply(self, resource: Resource, body: Json, *, subresource: str = "") -> Json:
        """Keep a status, or what pods rely on."""
        metadata = body["metadata"]
        self._life.write(f"apply {resource.plural} {metadata['name']} {subresource}")
        if resource is PODS:
            pod = self._world.pods[metadata["name"]]
            self._world.label(pod, is_spare=metadata["labels"][ROLE_LABEL] == SPARE)
            return body
        if resource is not RUNS:
            self._objects[resource.path(metadata["namespace"], metadata["name"])] = body
            return body
        if metadata["resourceVersion"] != str(self._world.version):
            raise ConflictError("the object has been modified")
        self._world.take_status(parse_status(body["status"]))
        self._world.version += 1
        return run_body(self._world)

    async def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        *,
        uid: str,
        grace_period_s: int | None = None,
    ) -> None:
        """Delete a pod."""
        assert resource is PODS
        assert namespace == RUN.namespace
        self._life.write(f"delete {name}")
        present = self._world.pods.get(name)
        if present is None:
            raise NotFoundError(name)
        if present.uid != uid:
            raise ConflictError(name)
        self._world.delete(present, force=grace_period_s == 0)


class WorldAgents(Agents):
    """The agents of the world in memory."""

    def __init__(self, world: World, life: Life) -> None:
        self._world = world
        self._life = life

    async def status(
        self, run: RunIdentity, key: bytes, address: str, *, is_missed: bool = False
    ) -> AgentStatus:
        """Return what an agent says."""
        del run, key, is_missed
        answer = self._world.answer(self._pod(address))
        if isinstance(answer, Silence):
            raise AgentError(answer.message, is_refusal=answer.is_refusal)
        return answer

    async def watch(self, run: RunIdentity, key: bytes, address: str, *, after: int) -> AgentStatus:
        """Wait for news that the tests do not need: they look by themselves."""
        del run, key, address, after
        await asyncio.Event().wait()
        raise AssertionError

    async def assign(self, key: bytes, address: str, assignment: GroupAssignment) -> None:
        """Tell an agent who trains together."""
        del key
        self._life.write(f"assign {assignment.generation} to {address}")
        self._reach(address)
        self._world.agents[self._pod(address).uid].assign(assignment)

    async def stop(
        self, run: RunIdentity, key: bytes, address: str, *, generation: int, mode: StopMode
    ) -> None:
        """Tell an agent to end."""
        del run, key
        self._life.write(f"stop {address}")
        self._reach(address)
        self._world.agents[self._pod(address).uid].stop(generation, mode)

    def _pod(self, address: str) -> Pod:
        return next(pod for pod in self._world.pods.values() if pod.address == address)

    def _reach(self, address: str) -> None:
        if isinstance(self._world.answer(self._pod(address)), Silence):
            raise AgentError("no answer in time")


def run_body(world: World) -> Json:
    """Return the ModelScaling as the API server has it."""
    return {
        "metadata": {
            "namespace": RUN.namespace,
            "name": RUN.name,
            "uid": RUN.uid,
            "generation": world.generation,
            "resourceVersion": str(world.version),
            **({"deletionTimestamp": "2026-01-01T00:00:00Z"} if world.is_being_deleted else {}),
        },
        "spec": world.spec,
        "status": world.status.model_dump(mode="json", by_alias=True, exclude_none=True),
    }


@dataclass(slots=True)
class WorldLoop:
    """One operator after another on a world; each is killed before a write that it is told."""

    world: World
    objects: dict[str, Json] = field(default_factory=dict)
    life: Life = field(default_factory=Life)
    metrics: Metrics = field(default_factory=Metrics)
    loop: RunLoop | None = None

    async def __aenter__(self) -> Self:
        """Start the first operator."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the last one."""
        await self.kill()

    async def start(self, *, writes: int | None = None) -> None:
        """Start an operator, which lives for that many writes."""
        await self.kill()
        self.life = Life(writes_left=writes)
        self.loop = RunLoop(
            RUN,
            Surroundings(
                kube=WorldKube(self.world, self.life, self.objects),
                agents=WorldAgents(self.world, self.life),
                metrics=self.metrics,
                vitals=Vitals(lambda: 0.0),
                policy=POLICY,
                pull_policy="Never",
                now=lambda: self.world.now,
            ),
            body=lambda: run_body(self.world),
            pods=lambda: tuple(self.world.pods.values()),
        )

    async def kill(self) -> None:
        """End the operator without another word."""
        if self.loop is not None:
            await self.loop.close()
        self.loop = None

    async def tick(self) -> None:
        """Let the operator look, and the world live on; an operator that dies is replaced."""
        assert self.loop is not None
        try:
            await self.loop.look()
        except OperatorDiedError:
            await self.start()
        self.world.live_on()
        self.world.now += timedelta(seconds=1)

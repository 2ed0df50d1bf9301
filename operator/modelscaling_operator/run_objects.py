"""The objects of one run, as they are written to the API server."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from typing import TYPE_CHECKING, Any

from modelscaling_operator.dependencies import (
    KEY_BYTES,
    config_map_manifest,
    key_of,
    secret_manifest,
    service_manifest,
)
from modelscaling_operator.identity import MEMBER, ROLE_LABEL, SPARE
from modelscaling_operator.kube import (
    CONFIG_MAPS,
    PODS,
    RUNS,
    SECRETS,
    SERVICES,
    ConflictError,
    NotFoundError,
)
from modelscaling_operator.observation import parse_pod
from modelscaling_operator.pod import pod_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from modelscaling_operator.identity import RunIdentity
    from modelscaling_operator.kube import Kube, Resource
    from modelscaling_operator.observation import Pod
    from modelscaling_operator.wish import Wish

_logger = logging.getLogger(__name__)

Json = dict[str, Any]

_PARALLEL_CREATES = 16
_STAYS_S = 30.0
"""Seconds in which what was written is taken to be there still: where the API server refuses many
requests, each try goes on from what the one before has made, and a pod is known before the watch
tells of it."""


class NameTakenError(Exception):
    """An object of the name that is needed belongs to somebody else."""


class RunObjects:
    """Creates and deletes what belongs to one run."""

    def __init__(
        self, kube: Kube, run: RunIdentity, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._kube = kube
        self._run = run
        self._clock = clock
        self._key = b""
        self._written: dict[Resource, tuple[Json, float]] = {}
        """By kind, what was last written of what pods rely on, and until when that is there."""
        self._created: dict[str, tuple[Pod, float]] = {}
        """By UID, the pods that the watch has not told of yet, and until when it is awaited to."""

    def with_created(self, told: Iterable[Pod]) -> tuple[Pod, ...]:
        """Return the pods that the watch has told of, and those created since, which would be
        created once more else, under other indexes perhaps.
        """
        pods = {pod.uid: pod for pod in told}
        self._created = {
            uid: (pod, awaited_until)
            for uid, (pod, awaited_until) in self._created.items()
            if uid not in pods and self._clock() < awaited_until
        }
        return (*pods.values(), *(pod for pod, _ in self._created.values()))

    async def key(self) -> bytes:
        """Return the run's key; empty as long as its Secret does not exist."""
        if not self._key:
            secret = await self._own(SECRETS, self._run.secret_name)
            self._key = key_of(secret) if secret else b""
        return self._key

    async def create_pods(
        self,
        wish: Wish,
        indexes: tuple[int, ...],
        *,
        image: str,
        pull_policy: str,
        avoid_nodes: tuple[str, ...] = (),
        source_uid: str | None = None,
    ) -> None:
        """Create pods, and before them what they rely on.

        Raises:
            NameTakenError: an object that is needed has somebody else's.
            KubeError: the API server refused one; others may have been created.
        """
        await _finish_all(self._dependencies(wish))
        limit = asyncio.Semaphore(_PARALLEL_CREATES)

        async def create(index: int) -> None:
            body = pod_manifest(
                self._run,
                wish.spec,
                index,
                image=image,
                pull_policy=pull_policy,
                avoid_nodes=avoid_nodes,
                source_uid=source_uid,
            )
            async with limit:
                created: Json | None
                try:
                    created = await self._kube.create(PODS, body)
                except ConflictError:
                    # Ours, and the watch has not told yet; or somebody else's.
                    created = await self._own(PODS, body["metadata"]["name"])
                pod = parse_pod(created) if created else None
                if pod is not None:
                    self._created[pod.uid] = (pod, self._clock() + _STAYS_S)

        await _finish_all(create(index) for index in indexes)

    async def delete_pod(self, pod: Pod, *, grace_s: int | None) -> None:
        """Delete this very pod. One whose containers have ended leaves at once."""
        try:
            await self._kube.delete(
                PODS,
                self._run.namespace,
                pod.name,
                uid=pod.uid,
                grace_period_s=0 if pod.ended else grace_s,
            )
        except (NotFoundError, ConflictError):
            _logger.debug("pod is gone already", extra={"pod": pod.name})

    async def label_pod(self, pod: Pod, *, is_spare: bool) -> None:
        """Label this very pod as a spare, or as one that is none any more."""
        metadata = {
            "namespace": self._run.namespace,
            "name": pod.name,
            "uid": pod.uid,
            "labels": {ROLE_LABEL: SPARE if is_spare else MEMBER},
        }
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
        try:
            await self._kube.apply(PODS, body)
        except (NotFoundError, ConflictError):
            _logger.debug("pod is gone already", extra={"pod": pod.name})

    async def delete_run(self) -> None:
        """Delete the ModelScaling."""
        try:
            await self._kube.delete(RUNS, self._run.namespace, self._run.name, uid=self._run.uid)
        except (NotFoundError, ConflictError):
            _logger.debug("run is gone already", extra={"run": str(self._run)})

    def _dependencies(self, wish: Wish) -> list[Coroutine[Any, Any, None]]:
        """Return what makes each of the objects that pods rely on."""
        run = self._run
        config_map = config_map_manifest(run, wish.configuration, wish.plan.mesh)
        return [
            self._ensure_secret(),
            self._ensure(CONFIG_MAPS, config_map),
            self._ensure(SERVICES, service_manifest(run)),
        ]

    async def _ensure(self, resource: Resource, body: Json) -> None:
        written, there_until = self._written.get(resource, (None, 0.0))
        if written == body and self._clock() < there_until:
            return
        await self._own(resource, body["metadata"]["name"])
        await self._kube.apply(resource, body)
        self._written[resource] = (body, self._clock() + _STAYS_S)

    async def _ensure_secret(self) -> None:
        """Create the key once; a Secret that was deleted comes back with the same key."""
        if not self._key:
            present = await self._own(SECRETS, self._run.secret_name)
            self._key = (key_of(present) if present else b"") or secrets.token_bytes(KEY_BYTES)
        await self._ensure(SECRETS, secret_manifest(self._run, self._key))

    async def _own(self, resource: Resource, name: str) -> Json | None:
        """Return an object of the run's own, None if there is none of the name.

        Raises:
            NameTakenError: it belongs to somebody else: to a user, or to a run of the same name
                that is being deleted.
        """
        try:
            found = await self._kube.get(resource, self._run.namespace, name)
        except NotFoundError:
            return None
        owners = found["metadata"].get("ownerReferences") or []
        if all(owner["uid"] != self._run.uid for owner in owners):
            raise NameTakenError(
                f"{resource.plural} {name} exists and does not belong to this run; delete it, or "
                f"give the run another name"
            )
        return found


async def _finish_all(tasks: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do all of these at once and to their ends, and raise what the first of them raised."""
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result

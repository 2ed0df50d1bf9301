"""The objects of one run, as they are written to the API server."""

from __future__ import annotations

import asyncio
import logging
import secrets
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
from modelscaling_operator.pod import pod_manifest

if TYPE_CHECKING:
    from modelscaling_operator.identity import RunIdentity
    from modelscaling_operator.kube import Kube, Resource
    from modelscaling_operator.observation import Pod
    from modelscaling_operator.wish import Wish

_logger = logging.getLogger(__name__)

Json = dict[str, Any]

_PARALLEL_CREATES = 16


class NameTakenError(Exception):
    """An object of the name that is needed belongs to somebody else."""


class RunObjects:
    """Creates and deletes what belongs to one run."""

    def __init__(self, kube: Kube, run: RunIdentity) -> None:
        self._kube = kube
        self._run = run
        self._key = b""

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
        await self._ensure_dependencies(wish)
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
                try:
                    await self._kube.create(PODS, body)
                except ConflictError:
                    # Ours, and the watch has not told yet; or somebody else's.
                    await self._own(PODS, body["metadata"]["name"])

        results = await asyncio.gather(
            *(create(index) for index in indexes), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

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

    async def _ensure_dependencies(self, wish: Wish) -> None:
        run = self._run
        await self._ensure_secret()
        for resource, body in (
            (CONFIG_MAPS, config_map_manifest(run, wish.configuration, wish.plan.mesh)),
            (SERVICES, service_manifest(run)),
        ):
            await self._own(resource, body["metadata"]["name"])
            await self._kube.apply(resource, body)

    async def _ensure_secret(self) -> None:
        """Create the key once; a Secret that was deleted comes back with the same key."""
        present = await self._own(SECRETS, self._run.secret_name)
        stored = key_of(present) if present else b""
        self._key = self._key or stored or secrets.token_bytes(KEY_BYTES)
        if stored != self._key:
            await self._kube.apply(SECRETS, secret_manifest(self._run, self._key))

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

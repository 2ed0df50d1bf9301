"""One operator acts at a time: it holds a Lease, or it waits for it.

Taken before the watches begin, renewed in a task, given back at the end so that the next operator
need not wait. Times in the Lease are never compared with the own clock, which may be off: a Lease
is free once it was seen unchanged for its duration.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from modelscaling_operator.kube import (
    LEASES,
    ConflictError,
    KubeError,
    NotFoundError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelscaling_operator.kube import Kube
    from modelscaling_operator.settings import Settings

_logger = logging.getLogger(__name__)

Json = dict[str, Any]


class Lease:
    """The Lease of the operators of one installation."""

    def __init__(self, kube: Kube, settings: Settings, *, on_loss: Callable[[], None]) -> None:
        self._kube = kube
        self._name = settings.lease_name
        self._namespace = settings.lease_namespace
        self._identity = settings.identity
        self._duration_s = settings.lease_duration_s
        self._on_loss = on_loss
        self._held: Json | None = None
        self._renewing: asyncio.Task[None] | None = None

    @property
    def held(self) -> bool:
        """Whether this operator is the one that acts."""
        return self._held is not None

    async def acquire(self) -> None:
        """Wait until the Lease is this operator's, then keep it."""
        seen: Json | None = None
        seen_at = 0.0
        clock = asyncio.get_running_loop().time
        while self._held is None:
            try:
                current = await self._current()
                if _version(current) != _version(seen):
                    seen, seen_at = current, clock()
                if _is_free(current) or clock() - seen_at > _duration_s(current):
                    self._held = await self._take(current)
                    continue
            except KubeError as error:
                _logger.warning("Lease is not acquired: %s", error)
            await asyncio.sleep(self._duration_s / 6)
        _logger.info("Lease is acquired", extra={"lease": self._name, "identity": self._identity})
        self._renewing = asyncio.create_task(self._renew(), name="lease")

    async def release(self) -> None:
        """Stop renewing, and give the Lease back."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
            self._renewing = None
        held, self._held = self._held, None
        if held is None:
            return
        held["spec"]["holderIdentity"] = ""
        try:
            async with asyncio.timeout(self._duration_s / 3):
                await self._kube.replace(LEASES, held)
        except (KubeError, TimeoutError) as error:
            _logger.warning("Lease is not released, it runs out by itself: %r", error)

    async def _renew(self) -> None:
        """Renew in time, or stop acting: somebody else may have begun to."""
        clock = asyncio.get_running_loop().time
        renewed_at = clock()
        pause_s = self._duration_s / 6
        while self._held is not None:
            await asyncio.sleep(pause_s)
            pause_s = self._duration_s / 30  # where it fails, there is no time to lose
            try:
                if await self._renew_once(self._held):
                    renewed_at = clock()
                    pause_s = self._duration_s / 6
            except (KubeError, TimeoutError) as error:
                _logger.warning("Lease is not renewed: %r", error)
            except Exception:
                # Whatever it is: were this task to end, nobody would notice the loss.
                _logger.exception("Lease is not renewed")
            if not self.held or clock() - renewed_at > self._duration_s * 2 / 3:
                _logger.error("Lease is lost; this operator ends")
                self._held = None
                self._on_loss()

    async def _renew_once(self, held: Json) -> bool:
        """Renew, and return whether that was done; after a conflict look who holds the Lease."""
        try:
            async with asyncio.timeout(self._duration_s / 3):
                held["spec"]["renewTime"] = _now()
                self._held = await self._kube.replace(LEASES, held)
        except ConflictError:
            await self._refresh()
            return False
        return True

    async def _refresh(self) -> None:
        """Look who holds the Lease after a conflict, which an unheard own write may have caused."""
        try:
            current = await self._kube.get(LEASES, self._namespace, self._name)
        except KubeError as error:
            _logger.warning("Lease is not read: %s", error)
            return
        own = (current.get("spec") or {}).get("holderIdentity") == self._identity
        self._held = current if own else None

    async def _current(self) -> Json:
        try:
            return await self._kube.get(LEASES, self._namespace, self._name)
        except NotFoundError:
            return await self._kube.create(
                LEASES,
                {
                    "apiVersion": "coordination.k8s.io/v1",
                    "kind": "Lease",
                    "metadata": {"namespace": self._namespace, "name": self._name},
                    "spec": {"holderIdentity": "", "leaseTransitions": 0},
                },
            )

    async def _take(self, current: Json) -> Json | None:
        spec = current.setdefault("spec", {})
        spec.update(
            holderIdentity=self._identity,
            leaseDurationSeconds=max(1, round(self._duration_s)),
            acquireTime=_now(),
            renewTime=_now(),
            leaseTransitions=(spec.get("leaseTransitions") or 0) + 1,
        )
        try:
            return await self._kube.replace(LEASES, current)
        except ConflictError:
            return None


def _is_free(lease: Json) -> bool:
    return not (lease.get("spec") or {}).get("holderIdentity")


def _duration_s(lease: Json) -> float:
    return float(lease["spec"].get("leaseDurationSeconds") or 0)


def _version(lease: Json | None) -> str:
    return lease["metadata"]["resourceVersion"] if lease else ""


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

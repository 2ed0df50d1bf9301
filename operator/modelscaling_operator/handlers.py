"""What kopf calls: events wake loops, an index holds pods, a daemon is the loop of a run.

No create, update or field handlers: they would patch the object twice a change and lose updates.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import kopf

from modelscaling.api.modelscaling import API_VERSION, GROUP, PLURAL
from modelscaling_operator.identity import INDEX_LABEL, NAME_LABEL, RunIdentity
from modelscaling_operator.loop import RunLoop
from modelscaling_operator.observation import parse_pod
from modelscaling_operator.resync import FINALIZER, is_lost

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelscaling_operator.loop import Surroundings
    from modelscaling_operator.observation import Pod

_logger = logging.getLogger(__name__)

_PodIndex = kopf.Index[tuple[str, str], "Pod"]

_VERSION = API_VERSION.partition("/")[2]
_OURS = {NAME_LABEL: kopf.PRESENT, INDEX_LABEL: kopf.PRESENT}
EXIT_TIMEOUT_S = 20
"""Seconds to end in; below the grace period of the operator's pod."""


class Handlers:
    """The handlers of one operator, in a registry of their own."""

    def __init__(self, surroundings: Surroundings) -> None:
        self.registry = kopf.OperatorRegistry()
        self._around = surroundings
        self._bodies: dict[str, Mapping[str, Any]] = {}
        self._loops: dict[tuple[str, str], dict[str, RunLoop]] = defaultdict(dict)
        run: Any = (GROUP, _VERSION, PLURAL)
        # kopf's decorators are typed for handlers with every keyword; ours take what they need.
        on_login: Any = kopf.on.login(registry=self.registry)
        on_login(self._login)
        index: Any = kopf.index("v1", "pods", id="pods", labels=_OURS, registry=self.registry)
        index(self._index_pod)
        pod_event: Any = kopf.on.event("v1", "pods", labels=_OURS, registry=self.registry)
        pod_event(self._on_pod)
        run_event: Any = kopf.on.event(*run, registry=self.registry)
        run_event(self._on_run)
        daemon: Any = kopf.daemon(
            *run,
            registry=self.registry,
            # The loop ends by itself when its object is being deleted; this is for one that is
            # in the middle of a look.
            cancellation_backoff=2,
            cancellation_timeout=5,
        )
        daemon(self._look_after)

    def lost(self) -> dict[str, Mapping[str, Any]]:
        """Return the runs, by UID, that wait for an event that kopf will not get."""
        return {
            uid: body
            for uid, body in self._bodies.items()
            if is_lost(body, looked_after=self._is_looked_after(uid, body["metadata"]))
        }

    def forget(self, uid: str) -> None:
        """Drop what is known of a run that does not exist any more."""
        self._bodies.pop(uid, None)

    def _is_looked_after(self, uid: str, metadata: Mapping[str, Any]) -> bool:
        return uid in self._loops.get((metadata["namespace"], metadata["name"]), {})

    @staticmethod
    def configure(settings: kopf.OperatorSettings) -> None:
        """Set kopf as the project needs it."""
        settings.peering.standalone = True
        settings.scanning.disabled = True
        settings.posting.enabled = False
        settings.posting.loggers = False
        settings.persistence.finalizer = FINALIZER
        settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(
            prefix=f"operator.{GROUP}"
        )
        settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(
            prefix=f"operator.{GROUP}"
        )
        settings.watching.server_timeout = 600
        settings.watching.chunk_size = 500
        settings.watching.label_selectors["v1", "pods"] = NAME_LABEL
        settings.networking.request_timeout = 30
        settings.networking.error_backoffs = [0.2, 0.5, 1, 2, 4, 8, 16, 32]
        # The next operator waits for the end of this one.
        settings.queueing.exit_timeout = 0.5
        settings.process.ultimate_exiting_timeout = EXIT_TIMEOUT_S
        # queueing.worker_limit stays unset: with an index it deadlocks (nolar/kopf#1243).

    @staticmethod
    def _login(**kwargs: Any) -> kopf.ConnectionInfo | None:  # noqa: ANN401 - kopf's to know
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @staticmethod
    async def _index_pod(body: kopf.Body, **_: object) -> dict[tuple[str, str], Pod]:
        pod = parse_pod(body)
        if pod is None:
            return {}
        return {(body["metadata"]["namespace"], body["metadata"]["labels"][NAME_LABEL]): pod}

    async def _on_pod(self, meta: kopf.Meta, **_: object) -> None:
        self._wake(str(meta.namespace), meta.labels[NAME_LABEL])

    async def _on_run(self, event: kopf.RawEvent, **_: object) -> None:
        body = event["object"]
        metadata = body["metadata"]
        if event["type"] == "DELETED":
            self.forget(metadata["uid"])
        else:
            self._bodies[metadata["uid"]] = body
        self._around.vitals.saw(metadata["uid"], int(metadata["resourceVersion"]))
        self._wake(metadata["namespace"], metadata["name"])

    async def _look_after(
        self,
        namespace: str,
        name: str,
        uid: str,
        pods: _PodIndex,
        stopped: kopf.DaemonStopped,
        **_: object,
    ) -> None:
        key = (namespace, name)
        loop = RunLoop(
            RunIdentity(namespace=namespace, name=name, uid=uid),
            self._around,
            body=lambda: self._bodies.get(uid),
            pods=lambda: tuple(pods.get(key, ())),
        )
        self._loops[key][uid] = loop
        watcher = asyncio.create_task(_stop_with(stopped, loop))
        try:
            await loop.run()
        finally:
            watcher.cancel()
            del self._loops[key][uid]
            if not self._loops[key]:
                del self._loops[key]

    def _wake(self, namespace: str, name: str) -> None:
        for loop in self._loops.get((namespace, name), {}).values():
            loop.wake.set()


async def _stop_with(stopped: kopf.DaemonStopped, loop: RunLoop) -> None:
    await stopped.wait()
    loop.stop()

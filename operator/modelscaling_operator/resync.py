"""Shows kopf once more a run of which it lost an event.

kopf handles each event once. When the write that the event leads to (the finalizer, put on or
taken off) is refused with an error that kopf does not try again, such as a conflict, the event is
lost; and a run that is still has no other: it would never be started, or hang in its deletion.
So a run in such a state is touched, from time to time and ever more rarely, which makes an event.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from modelscaling.api.modelscaling import API_VERSION, GROUP, KIND
from modelscaling_operator.kube import RUNS, ConflictError, KubeError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from modelscaling_operator.kube import Kube

_logger = logging.getLogger(__name__)

FINALIZER = f"{GROUP}/operator"
TOUCHED_ANNOTATION = f"operator.{GROUP}/touched"
PERIOD_S = 5.0
"""Seconds between two looks at what is known of the runs."""
FIRST_PAUSE_S = 10.0
"""Seconds for which a run has to be lost; kopf needs a fraction of one from event to event."""
LONGEST_PAUSE_S = 300.0


def is_lost(body: Mapping[str, Any], *, looked_after: bool) -> bool:
    """Whether kopf still has something to do for a run that nobody looks after: to put its
    finalizer on and start the run's loop, or to take it off.
    """
    metadata = body["metadata"]
    if looked_after:
        return False
    return not metadata.get("deletionTimestamp") or FINALIZER in metadata.get("finalizers", [])


class Lost:
    """Since when which runs are lost, and when each is due. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due: dict[str, tuple[float, float]] = {}

    def note(self, uids: set[str]) -> set[str]:
        """Take note of all runs that are lost now; return those that are due."""
        now = self._clock()
        self._due = {uid: self._due.get(uid, (now + FIRST_PAUSE_S, FIRST_PAUSE_S)) for uid in uids}
        due = {uid for uid, (at, _) in self._due.items() if now >= at}
        for uid in due:
            pause = min(LONGEST_PAUSE_S, 2 * self._due[uid][1])
            self._due[uid] = (now + pause, pause)
        return due


async def touch(kube: Kube, body: Mapping[str, Any], now: datetime) -> bool:
    """Change a run in a way that only makes an event; return False if there is no such run any
    more. A refusal is told, and no error.
    """
    metadata = body["metadata"]
    run = f"{metadata['namespace']}/{metadata['name']}"
    _logger.warning("kopf lost an event of the run; it is touched", extra={"run": run})
    touched = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            **{key: metadata[key] for key in ("namespace", "name", "uid")},
            "annotations": {TOUCHED_ANNOTATION: now.isoformat()},
        },
    }
    try:
        await kube.apply(RUNS, touched)
    except (ConflictError, NotFoundError) as error:
        # What does not exist is also told as a conflict, of UIDs.
        _logger.warning("the run is not touched", extra={"run": run, "error": str(error)})
        return await _exists(kube, metadata)
    except KubeError as error:
        _logger.warning("the run is not touched", extra={"run": run, "error": str(error)})
    return True


async def _exists(kube: Kube, metadata: Mapping[str, Any]) -> bool:
    try:
        found = await kube.get(RUNS, metadata["namespace"], metadata["name"])
    except NotFoundError:
        return False
    except KubeError:
        return True
    return bool(found["metadata"]["uid"] == metadata["uid"])


class Resync:
    """Touches, until it is stopped, the runs that are due of those that `lost` returns by UID.
    `forget` is called with the UID of one that turns out to be gone, which kopf may never tell.
    """

    def __init__(
        self,
        kube: Kube,
        lost: Callable[[], Mapping[str, Mapping[str, Any]]],
        forget: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._kube = kube
        self._lost = lost
        self._forget = forget
        self._register = Lost(clock)
        self._now = now
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look from time to time."""
        self._task = asyncio.create_task(self._look_for_ever(), name="resync")

    async def stop(self) -> None:
        """End, also in the middle of a look."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def look(self) -> None:
        """Touch what is due now."""
        bodies = self._lost()
        due = sorted(self._register.note(set(bodies)))
        exist = await asyncio.gather(*(touch(self._kube, bodies[uid], self._now()) for uid in due))
        for uid, does_exist in zip(due, exist, strict=True):
            if not does_exist:
                self._forget(uid)

    async def _look_for_ever(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            try:
                await self.look()
            except Exception:
                _logger.exception("lost runs are looked for again")

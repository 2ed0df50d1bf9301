"""The single-flight loop of one run: wait, observe, decide, say, act.

Events only wake it. The wake flag is cleared before observing, so what happens during a look
leads to another one. Nothing is kept here that a restart may not lose: the last status (read
again at the start), since when an agent is silent, what the API server refused.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from modelscaling.api.modelscaling import API_VERSION, KIND
from modelscaling.protocol import StopMode
from modelscaling_operator.accepted_spec import accepted_or_before
from modelscaling_operator.act import Actor
from modelscaling_operator.action import Stop
from modelscaling_operator.announcement import announcements, event_manifest
from modelscaling_operator.decision import decide
from modelscaling_operator.growing import note_rejection, trained_so_far
from modelscaling_operator.interview import Interview
from modelscaling_operator.kube import (
    EVENTS,
    RUNS,
    ConflictError,
    KubeError,
    NotFoundError,
)
from modelscaling_operator.observation import Observation, Pod, Refusal, parse_status
from modelscaling_operator.run_objects import NameTakenError, RunObjects
from modelscaling_operator.source_run import awaited_source, find_source
from modelscaling_operator.wish import Rejection, Wish, resolve_wish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from modelscaling.api.status import ModelScalingStatus
    from modelscaling_operator.agents import Agents
    from modelscaling_operator.decision import Policy
    from modelscaling_operator.health import Vitals
    from modelscaling_operator.identity import RunIdentity
    from modelscaling_operator.kube import Kube
    from modelscaling_operator.metrics import Metrics

_logger = logging.getLogger(__name__)

PROGRESS_PERIOD_S = 2.0
"""Seconds between two writes of a status in which only the progress differs."""
LONGEST_BACKOFF_S = 30.0

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all loops share."""

    kube: Kube
    agents: Agents
    metrics: Metrics
    vitals: Vitals
    policy: Policy
    pull_policy: str
    now: Callable[[], datetime] = lambda: datetime.now(UTC)


class RunLoop:
    """Looks after one run, from its appearance to its deletion."""

    def __init__(
        self,
        run: RunIdentity,
        surroundings: Surroundings,
        *,
        body: Callable[[], Mapping[str, Any] | None],
        pods: Callable[[], Iterable[Pod]],
    ) -> None:
        self._run = run
        self._around = surroundings
        self._body = body
        self._pods = pods
        self._objects = RunObjects(surroundings.kube, run)
        self._actor = Actor(
            run, self._objects, surroundings.agents, pull_policy=surroundings.pull_policy
        )
        self.wake = asyncio.Event()
        """Set to have the run looked at at once."""
        self._interview = Interview(
            run,
            surroundings.agents,
            self._objects,
            now=surroundings.now,
            wake=self.wake.set,
        )
        self._status: ModelScalingStatus | None = None
        self._written: Json = {}
        self._written_at = float("-inf")
        self._version = 0
        self._wish: tuple[int, Wish | Rejection] | None = None
        self._refusal: Refusal | None = None
        self._errors = 0
        self._stopping = False

    def stop(self) -> None:
        """End after the present look; the operator itself ends."""
        self._stopping = True
        self.wake.set()

    async def run(self) -> None:
        """Look after the run until it is being deleted, or the operator ends."""
        vitals = self._around.vitals
        try:
            while not self._stopping:
                requeue_s = await self._look_safely()
                if requeue_s is None:
                    return
                vitals.plan(self._run.uid, requeue_s)
                try:
                    async with asyncio.timeout(requeue_s):
                        await self.wake.wait()
                except TimeoutError:
                    continue
        finally:
            await self.close()
            vitals.forget(self._run.uid)
            self._around.metrics.forget(self._run)

    async def close(self) -> None:
        """Let go of the agents; a loop that runs does so at its end."""
        await self._interview.close()

    async def _look_safely(self) -> float | None:
        """Look once; an error is told, counted and tried again later."""
        self.wake.clear()
        try:
            with self._around.metrics.reconcile_duration.time():
                requeue_s = await self.look()
        except ConflictError:
            # Somebody changed the object in between; the watch is about to tell what.
            self._status = None
            return 0.1
        except KubeError as error:
            return self._back_off(error, error.retry_after_s)
        except Exception as error:
            _logger.exception("look failed", extra={"run": str(self._run)})
            return self._back_off(error, None)
        self._errors = 0
        return requeue_s

    def _back_off(self, error: Exception, retry_after_s: float | None) -> float:
        self._around.metrics.reconcile_errors.inc()
        self._errors += 1
        pause_s = min(LONGEST_BACKOFF_S, 0.5 * 2.0 ** min(self._errors - 1, 10))
        pause_s = max(pause_s, retry_after_s or 0)
        _logger.warning(
            "look is tried again",
            extra={"run": str(self._run), "error": str(error), "pause_s": pause_s},
        )
        return pause_s

    async def look(self) -> float | None:
        """Observe, decide, say, act; return after how many seconds to look again, None once the
        run is being deleted.
        """
        body = self._body()
        if body is None:
            return None
        if body["metadata"].get("deletionTimestamp"):
            await self._bid_farewell(body)
            return None
        if self._status is None and not await self._read_status():
            return None
        assert self._status is not None
        before = self._status
        declared = self._resolve(body, before)
        # What is waited for belongs to the spec that is gone by.
        gone_by = accepted_or_before(declared, self._run, before)
        seen = note_rejection(await self._observe(body, gone_by, before))
        wish = accepted_or_before(declared, self._run, seen.status)
        now = self._around.now()
        decision = decide(wish, seen, now, self._around.policy)
        told_before = await self._say(body, before, decision.status)
        self._show(wish, decision.status)
        try:
            refusal = await self._actor.act(wish, decision.actions, now)
        finally:
            # News come after what steps wait for.
            if told_before is not None:
                await self._announce(told_before, decision.status)
        self._refusal = refusal or self._kept_refusal(seen, now)
        if refusal is not None:
            return 0.01
        return decision.requeue_s

    async def _read_status(self) -> bool:
        """Read the newest status, past the watch: it decides which numbers are used up."""
        try:
            newest = await self._around.kube.get(RUNS, self._run.namespace, self._run.name)
        except NotFoundError:
            return False
        if newest["metadata"]["uid"] != self._run.uid:
            return False
        self._status = parse_status(newest.get("status"))
        self._written = newest.get("status") or {}
        self._version = int(newest["metadata"]["resourceVersion"])
        return True

    def _resolve(self, body: Mapping[str, Any], status: ModelScalingStatus) -> Wish | Rejection:
        generation, trained = body["metadata"]["generation"], trained_so_far(status)
        if self._wish is None or self._wish[0] != generation:
            self._refusal = None
        elif isinstance(self._wish[1], Wish) and self._wish[1].is_current(trained):
            return self._wish[1]
        self._wish = (generation, resolve_wish(self._run, body.get("spec") or {}, trained))
        return self._wish[1]

    async def _observe(
        self, body: Mapping[str, Any], wish: Wish | Rejection, status: ModelScalingStatus
    ) -> Observation:
        name = awaited_source(wish, status)
        source = await find_source(self._around.kube, self._run, name) if name else None
        seen = Observation(
            run=self._run,
            generation=body["metadata"]["generation"],
            status=status,
            pods=self._objects.with_created(self._pods()),
            refusal=self._refusal,
            source=source,
        )
        return replace(seen, agents=await self._interview.ask(seen))

    async def _bid_farewell(self, body: Mapping[str, Any]) -> None:
        """Tell the agents of a run that is being deleted to end, as a last act: their pods are
        deleted only after it, and then end at once.
        """
        group = parse_status(body.get("status")).group
        stops = [
            Stop(pod=pod, mode=StopMode.SUSPEND, generation=group.generation if group else 0)
            for pod in self._pods()
            if pod.owner_uid == self._run.uid and pod.live
        ]
        try:
            await self._actor.tell(stops)
        except (KubeError, NameTakenError) as error:
            _logger.info("nobody was told", extra={"run": str(self._run), "why": str(error)})

    async def _say(
        self, body: Mapping[str, Any], before: ModelScalingStatus, after: ModelScalingStatus
    ) -> ModelScalingStatus | None:
        """Write the status where it differs, and return what it said before; else None."""
        self._status = after
        content = after.model_dump(mode="json", by_alias=True, exclude_none=True)
        if not self._worth_writing(content):
            return None
        version = max(self._version, int(body["metadata"]["resourceVersion"]))
        try:
            written = await self._around.kube.apply(
                RUNS,
                {
                    "apiVersion": API_VERSION,
                    "kind": KIND,
                    "metadata": {
                        "namespace": self._run.namespace,
                        "name": self._run.name,
                        "uid": self._run.uid,
                        # Were two operators to act, the slower one's number would be refused.
                        "resourceVersion": str(version),
                    },
                    "status": content,
                },
                subresource="status",
            )
        except KubeError:
            self._status = before
            raise
        self._errors = 0  # the server answers: what it refuses after this is soon tried again
        self._version = int(written["metadata"]["resourceVersion"])
        self._around.vitals.wrote(self._run.uid, self._version)
        told_before = parse_status(self._written)
        self._written, self._written_at = content, time.monotonic()
        return told_before

    def _worth_writing(self, content: Json) -> bool:
        if content == self._written:
            return False
        significant = {key: value for key, value in content.items() if key != "progress"}
        known = {key: value for key, value in self._written.items() if key != "progress"}
        due = time.monotonic() >= self._written_at + PROGRESS_PERIOD_S
        return significant != known or due

    async def _announce(self, before: ModelScalingStatus, after: ModelScalingStatus) -> None:
        """Count and post what changed; Events are news, not state, so a lost one is no error."""
        for record in after.rescales:
            if record not in before.rescales:
                self._around.metrics.add_rescale(record)
        for announcement in announcements(before, after):
            event = event_manifest(self._run, announcement, self._around.now())
            try:
                await self._around.kube.create(EVENTS, event)
            except ConflictError:
                continue
            except KubeError as error:
                _logger.info("Event is lost", extra={"run": str(self._run), "error": str(error)})

    def _show(self, wish: Wish | Rejection, status: ModelScalingStatus) -> None:
        wished = wish.spec.replicas if isinstance(wish, Wish) else 0
        self._around.metrics.show_replicas(
            self._run, wished=wished, present=status.replicas, ready=status.ready_replicas
        )

    def _kept_refusal(self, seen: Observation, now: datetime) -> Refusal | None:
        """Return the refusal that still stands: until its action is tried again."""
        refusal = seen.refusal
        return refusal if refusal is not None and now < refusal.retry_time else None

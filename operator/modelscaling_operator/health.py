"""/healthz, /readyz and /metrics, from what the operator measures of itself.

A liveness probe that only proves that an HTTP task runs says OK while the operator is dead. This
one fails when a run was not looked at in time, or when the watch does not show the operator's own
writes.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelscaling_operator.metrics import Metrics

OVERDUE_LIMIT_S = 60.0
"""A run that is looked at this much later than planned makes the operator unhealthy."""
WATCH_LIMIT_S = 180.0
"""Two dead watches in a row: kopf gives one up after 70 seconds of silence."""
_LAG_PERIOD_S = 0.5


class Vitals:
    """What tells whether the operator works. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due: dict[str, float] = {}
        self._unseen: dict[str, tuple[int, float]] = {}
        self.loop_lag_s = 0.0

    def plan(self, uid: str, in_s: float) -> None:
        """Note when a run is to be looked at next."""
        self._due[uid] = self._clock() + in_s

    def forget(self, uid: str) -> None:
        """Drop a run."""
        self._due.pop(uid, None)
        self._unseen.pop(uid, None)

    def wrote(self, uid: str, version: int) -> None:
        """Note an own write, which the watch is to show."""
        self._unseen.setdefault(uid, (version, self._clock()))

    def saw(self, uid: str, version: int) -> None:
        """Note what the watch showed."""
        waited = self._unseen.get(uid)
        if waited is not None and version >= waited[0]:
            del self._unseen[uid]

    @property
    def watch_age_s(self) -> float:
        """Age of the oldest own write that the watch has not shown."""
        return max((self._clock() - since for _, since in self._unseen.values()), default=0.0)

    @property
    def overdue_s(self) -> float:
        """How late the latest look at a run is."""
        return max((self._clock() - due for due in self._due.values()), default=0.0)

    def problem(self) -> str | None:
        """Return why the operator should be restarted; None if it works."""
        if self.overdue_s > OVERDUE_LIMIT_S:
            return f"a run is looked at {self.overdue_s:.0f} s too late"
        if self.watch_age_s > WATCH_LIMIT_S:
            return f"the watch has not shown a write of {self.watch_age_s:.0f} s ago"
        return None

    async def measure_lag(self) -> None:
        """Measure, for ever, how late the event loop is."""
        while True:
            begin = self._clock()
            await asyncio.sleep(_LAG_PERIOD_S)
            self.loop_lag_s = max(0.0, self._clock() - begin - _LAG_PERIOD_S)


class HealthServer:
    """Serves what probes and Prometheus ask for."""

    def __init__(self, vitals: Vitals, metrics: Metrics, *, port: int) -> None:
        self._vitals = vitals
        self._metrics = metrics
        self._port = port
        self._runner: web.AppRunner | None = None
        self._lag: asyncio.Task[None] | None = None
        self.ready = False
        """Whether the operator does what it is there for: it acts, or stands by."""

    async def start(self) -> None:
        """Listen."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._serve_metrics)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, port=self._port).start()
        self._lag = asyncio.create_task(self._vitals.measure_lag(), name="loop-lag")

    async def stop(self) -> None:
        """Stop listening; once more does no harm."""
        lag, self._lag = self._lag, None
        if lag is not None:
            lag.cancel()
            await asyncio.gather(lag, return_exceptions=True)
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _healthz(self, _request: web.Request) -> web.Response:
        problem = self._vitals.problem()
        return web.Response(status=503 if problem else 200, text=problem or "ok")

    async def _readyz(self, _request: web.Request) -> web.Response:
        return web.Response(
            status=200 if self.ready else 503, text="ok" if self.ready else "starting"
        )

    async def _serve_metrics(self, _request: web.Request) -> web.Response:
        self._metrics.loop_lag.set(self._vitals.loop_lag_s)
        self._metrics.watch_age.set(self._vitals.watch_age_s)
        return web.Response(
            body=generate_latest(self._metrics.registry),
            headers={"Content-Type": CONTENT_TYPE_LATEST},
        )

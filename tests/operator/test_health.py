from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import pytest_asyncio

from modelscaling.api.group_status import RescaleRecord
from modelscaling_operator.health import HealthServer, Vitals
from modelscaling_operator.metrics import Metrics
from tests.operator.world import BEGIN, RUN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest_asyncio.fixture
async def server(unused_tcp_port: int) -> AsyncIterator[HealthServer]:
    health = HealthServer(Vitals(Clock()), Metrics(), port=unused_tcp_port)
    await health.start()
    yield health
    await health.stop()


async def _get(port: int, path: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}{path}") as answer,
    ):
        return answer.status, await answer.text()


async def test_probes_and_metrics_are_served(server: HealthServer, unused_tcp_port: int) -> None:
    assert await _get(unused_tcp_port, "/healthz") == (200, "ok")
    assert await _get(unused_tcp_port, "/readyz") == (503, "starting")
    server.ready = True
    assert await _get(unused_tcp_port, "/readyz") == (200, "ok")
    status, text = await _get(unused_tcp_port, "/metrics")
    assert status == 200
    for name in (
        "modelscaling_reconcile_duration_seconds_count",
        "modelscaling_reconcile_errors_total",
        "modelscaling_event_loop_lag_seconds",
        "modelscaling_watch_age_seconds",
    ):
        assert f"\n{name} " in text


def test_a_run_that_is_not_looked_at_in_time_is_unhealthy() -> None:
    clock = Clock()
    vitals = Vitals(clock)
    vitals.plan("a", 5)
    clock.time += 64
    assert vitals.problem() is None

    clock.time += 2
    assert vitals.problem() == "a run is looked at 61 s too late"

    vitals.plan("a", 5)
    assert vitals.problem() is None


def test_a_watch_that_does_not_show_own_writes_is_unhealthy() -> None:
    clock = Clock()
    vitals = Vitals(clock)
    vitals.wrote("a", 10)
    vitals.saw("a", 9)
    clock.time += 181

    assert vitals.problem() == "the watch has not shown a write of 181 s ago"

    vitals.saw("a", 11)

    assert vitals.watch_age_s == 0


def test_a_deleted_run_is_no_longer_waited_for() -> None:
    clock = Clock()
    vitals = Vitals(clock)
    vitals.plan("a", 1)
    vitals.wrote("a", 1)
    vitals.forget("a")
    clock.time += 1000

    assert vitals.problem() is None


def test_the_series_of_a_deleted_run_disappear() -> None:
    metrics = Metrics()
    labels = {"namespace": RUN.namespace, "name": RUN.name, "state": "ready"}
    metrics.show_replicas(RUN, wished=3, present=2, ready=1)
    assert metrics.registry.get_sample_value("modelscaling_replicas", labels) == 1

    metrics.forget(RUN)

    assert metrics.registry.get_sample_value("modelscaling_replicas", labels) is None


def test_a_recovery_is_counted_beside_its_downtime() -> None:
    metrics = Metrics()
    metrics.add_rescale(
        RescaleRecord(
            time=BEGIN,
            cause="NodeLost",
            from_="dp2",
            to="dp2",
            downtime_seconds="3.5",
            lost_steps=4,
        )
    )

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, labels)

    cause = {"cause": "NodeLost"}
    assert value("modelscaling_rescale_downtime_seconds_sum", **cause) == 3.5
    assert value("modelscaling_rescale_lost_steps_total", **cause) == 4
    assert value("modelscaling_recovery_seconds_sum") == 3.5

"""The README's promise: the examples train, and their numbers are in Prometheus."""

from __future__ import annotations

from statistics import mean
from typing import TYPE_CHECKING

import pytest

from charts.dashboards.queries import panel_queries
from charts.dashboards.run import run_dashboard
from tests.conftest import ROOT
from tests.e2e.prometheus import series, wait_for_series
from tests.live_run import LiveRun

if TYPE_CHECKING:
    from demo.kubectl import Cluster

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("operator"),
]


def test_the_demo_example_learns_and_shows_its_numbers_and_goes(
    cluster: Cluster, run_namespace: str
) -> None:
    assert cluster.prometheus, "set PROMETHEUS_URL to the Prometheus that scrapes this cluster"
    run = LiveRun(cluster=cluster, namespace=run_namespace, name="stdlib-3m")
    run.kubectl("apply", f"--filename={ROOT / 'examples/stdlib-3m.yaml'}")

    run.wait_for_step(60, timeout_s=240)
    queries = panel_queries(run_dashboard(), namespace=run_namespace, name="stdlib-3m")
    for _, query in queries:
        wait_for_series(cluster.prometheus, query)
    run.wait_for_step(150, timeout_s=300)
    _assert_throughput_adds_up(cluster.prometheus, run)
    status = run.wait_for_state("Complete", timeout_s=600)
    table = run.kubectl("get", "msc", "stdlib-3m")

    assert len(queries) >= 5
    assert float(status["progress"]["loss"]) < 2.0
    assert status["progress"]["step"] == status["progress"]["totalSteps"] == 261
    assert status["progress"]["tokens"] == 261 * 12 * 256
    header, row = table.splitlines()
    assert header.split() == (
        ["NAME", "STATE", "MODEL", "REPLICAS", "PLAN", "STEP", "LOSS", "TOKENS/S", "MFU", "AGE"]
    )
    assert row.split()[:6] == ["stdlib-3m", "Complete", "3.21M", "2", "dp2", "261"]

    run.delete()

    wait_for_series(
        cluster.prometheus,
        f'{{namespace="{run_namespace}", name="stdlib-3m"}}',
        present=False,
    )
    run.wait_for_no_pods()


def _assert_throughput_adds_up(prometheus: str, run: LiveRun) -> None:
    """The tokens that were counted are the tokens a second that were shown meanwhile, but for
    validating and for scrapes that fall beside steps. A fast machine trains less than the minute.
    """
    labels = f'namespace="{run.namespace}", name="{run.name}"'
    [counted] = series(prometheus, f"modelscaling_tokens_total{{{labels}}}[1m]")
    [shown] = series(prometheus, f"modelscaling_tokens_per_second{{{labels}}}[1m]")
    tokens = {time: float(value) for time, value in counted["values"] if float(value)}
    began, ended = min(tokens), max(tokens)
    speeds = [float(value) for time, value in shown["values"] if began <= time <= ended]

    speed = (tokens[ended] - tokens[began]) / (ended - began)
    assert speed == pytest.approx(mean(speeds), rel=0.25)


def test_the_larger_example_starts(cluster: Cluster, run_namespace: str) -> None:
    run = LiveRun(cluster=cluster, namespace=run_namespace, name="stdlib-20m")
    run.kubectl("apply", f"--filename={ROOT / 'examples/stdlib-20m.yaml'}")

    status = run.wait_for_step(1, timeout_s=240)
    run.delete()

    assert status["model"]["parameters"] == 25_305_600
    assert status["plan"]["mesh"] == "dp2"

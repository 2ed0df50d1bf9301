from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.charts.matrix import EVERYTHING
from tests.charts.rendered import Render, find
from tools.generate.metrics_reference import operator_metrics, trainer_metrics

RULES = "files/rules/modelscaling.yaml"


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.cluster
def test_promtool_finds_nothing_in_the_rules(promtool: str, chart: Path) -> None:
    checked = _run(promtool, "check", "rules", "--lint-fatal", chart / RULES)

    assert checked.returncode == 0, checked.stderr


@pytest.mark.cluster
def test_alerts_fire_when_they_should_and_only_then(promtool: str) -> None:
    tested = _run(promtool, "test", "rules", Path(__file__).parent / "alerts.yaml")

    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.cluster
def test_the_chart_ships_the_rules_that_were_tested(render: Render, chart: Path) -> None:
    rule = find(render(EVERYTHING), "PrometheusRule")

    assert rule["spec"] == yaml.safe_load((chart / RULES).read_text())


def test_every_alert_has_a_test_in_which_it_fires(chart: Path) -> None:
    rules = yaml.safe_load((chart / RULES).read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}

    tests = yaml.safe_load((Path(__file__).parent / "alerts.yaml").read_text())["tests"]
    fired = {
        case["alertname"]
        for test in tests
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    assert fired == alerts


def test_every_alert_watches_series_that_operator_or_trainer_have(chart: Path) -> None:
    known = {
        series for entry in (*trainer_metrics(), *operator_metrics()) for series in entry.series
    }
    rules = yaml.safe_load((chart / RULES).read_text())

    for group in rules["groups"]:
        for rule in group["rules"]:
            names = set(re.findall(r"modelscaling_\w+", rule["expr"]))
            assert names
            assert names <= known

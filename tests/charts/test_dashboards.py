from __future__ import annotations

import json
from typing import TYPE_CHECKING

import promql_parser
import pytest

from charts.dashboards.panel import Unit
from charts.dashboards.queries import panel_queries
from charts.dashboards.run import run_dashboard
from tools.generate.metrics_reference import operator_metrics, trainer_metrics

if TYPE_CHECKING:
    from pathlib import Path

DASHBOARD = run_dashboard()
QUERIES = panel_queries(DASHBOARD, namespace="research", name="run-1")
KNOWN_SERIES = {
    series for entry in (*trainer_metrics(), *operator_metrics()) for series in entry.series
}

each_query = pytest.mark.parametrize(
    "query", [query for _, query in QUERIES], ids=[f"{panel}" for panel, _ in QUERIES]
)


def _selectors(query: str) -> list[promql_parser.VectorSelector]:
    """Every selector of series in a query."""
    selectors = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            selectors.append(node)

    promql_parser.walk(promql_parser.parse(query), visit)
    return selectors


@each_query
def test_every_query_asks_for_series_that_operator_or_trainer_have(query: str) -> None:
    names = {selector.name for selector in _selectors(query)}

    assert names
    assert names <= KNOWN_SERIES


@each_query
def test_every_query_is_of_one_namespace_and_of_the_chosen_runs(query: str) -> None:
    for selector in _selectors(query):
        assert str(selector.matchers) == '{namespace="research",name=~"run-1"}'


def test_variables_are_replaced_and_none_is_left() -> None:
    assert not any("$" in query for _, query in QUERIES)


def test_a_variable_whose_name_begins_another_ones_is_replaced_by_its_own_value() -> None:
    dashboard = {"panels": [{"title": "P", "targets": [{"expr": '$namespace $name "$name"'}]}]}

    queries = panel_queries(dashboard, namespace="N", name="R")

    assert queries == [("P", 'N R "R"')]


def test_every_rate_is_over_an_interval_that_grafana_fits_to_the_scraping() -> None:
    expressions = [t["expr"] for panel in DASHBOARD["panels"] for t in panel["targets"]]
    ranges = [expression for expression in expressions if "[" in expression]

    assert ranges
    for expression in ranges:
        assert expression.count("[") == expression.count("[$__rate_interval]")


def test_every_panel_says_what_it_shows_in_which_unit() -> None:
    for panel in DASHBOARD["panels"]:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"] in set(Unit)


def test_every_panel_reads_from_the_chosen_data_source() -> None:
    for panel in DASHBOARD["panels"]:
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_a_reader_chooses_data_source_namespace_and_runs() -> None:
    variables = {v["name"]: v["type"] for v in DASHBOARD["templating"]["list"]}

    assert variables == {"datasource": "datasource", "namespace": "query", "name": "query"}


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    cells = [
        (panel["gridPos"]["x"] + dx, panel["gridPos"]["y"] + dy)
        for panel in DASHBOARD["panels"]
        for dx in range(panel["gridPos"]["w"])
        for dy in range(panel["gridPos"]["h"])
    ]
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]

    assert len(cells) == len(set(cells))
    assert len(numbers) == len(set(numbers))


def test_the_chart_ships_the_dashboard_that_was_tested(chart: Path) -> None:
    assert json.loads((chart / "files/dashboards/run.json").read_text()) == DASHBOARD

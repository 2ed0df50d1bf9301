"""The two kinds of panel that dashboards are made of, with the habits that all of them share.

Every panel says what it shows, in which unit, and reads from the data source that the reader
chose.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from grafana_foundation_sdk.builders.common import ReduceDataOptions, VizLegendOptions
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as StatPanel
from grafana_foundation_sdk.builders.timeseries import Panel as TimeseriesPanel
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    DataSourceRef,
    LegendDisplayMode,
    LegendPlacement,
)

Panel = StatPanel | TimeseriesPanel

DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

STAT_SIZE = (4, 4)
"""Columns (of 24) and rows of a stat panel."""
TIMESERIES_SIZE = (12, 8)
"""Columns (of 24) and rows of a time series panel."""


class Unit(StrEnum):
    """Grafana's names of the units that are used."""

    BYTES = "bytes"
    COUNT = "none"
    RATIO = "percentunit"
    SECONDS = "s"
    SHORT = "short"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One PromQL query of a panel."""

    expression: str
    legend: str


def stat(*, title: str, description: str, unit: Unit, query: Query) -> StatPanel:
    """Return a panel with the newest value of a query as a number."""
    columns, rows = STAT_SIZE
    panel = StatPanel().title(title).description(description).unit(unit).datasource(DATASOURCE)
    panel = panel.span(columns).height(rows).graph_mode(BigValueGraphMode.AREA)
    panel = panel.reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
    return panel.with_target(_target(query, "A"))


def timeseries(
    *, title: str, description: str, unit: Unit, queries: tuple[Query, ...]
) -> TimeseriesPanel:
    """Return a panel with the course of some queries."""
    columns, rows = TIMESERIES_SIZE
    legend = (
        VizLegendOptions()
        .show_legend(True)
        .display_mode(LegendDisplayMode.TABLE)
        .placement(LegendPlacement.BOTTOM)
        .calcs(["lastNotNull", "min", "max"])
    )
    panel = TimeseriesPanel().title(title).description(description).unit(unit)
    panel = panel.datasource(DATASOURCE).span(columns).height(rows).legend(legend)
    for reference, query in zip("ABCDEF", queries, strict=False):
        panel = panel.with_target(_target(query, reference))
    return panel


def _target(query: Query, reference: str) -> Dataquery:
    return (
        Dataquery()
        .expr(query.expression)
        .legend_format(query.legend)
        .ref_id(reference)
        .datasource(DATASOURCE)
        .range()
    )

"""What a dashboard asks Prometheus, so that a test can ask it without Grafana."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def panel_queries(
    dashboard: Mapping[str, Any], *, namespace: str, name: str, rate_interval: str = "1m"
) -> list[tuple[str, str]]:
    """Return the title of a panel and one of its PromQL queries, for every query of a dashboard.

    `dashboard` is the JSON that Grafana imports. Its variables are replaced as Grafana does it;
    Grafana's `$__rate_interval` is four times the scrape interval, and at least the step.
    """
    variables = {
        "$__rate_interval": rate_interval,
        "$namespace": namespace,
        "$name": name,
    }
    return [
        (panel["title"], _substitute(target["expr"], variables))
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]


def _substitute(expression: str, variables: Mapping[str, str]) -> str:
    # The longest first: $name is also how $namespace begins.
    for variable in sorted(variables, key=len, reverse=True):
        expression = expression.replace(variable, variables[variable])
    return expression

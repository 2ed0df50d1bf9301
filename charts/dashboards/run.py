"""The dashboard of a run: does it learn, how fast, on how much of the cluster."""

from __future__ import annotations

import json
from typing import Any

from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DatasourceVariable,
    QueryVariable,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    VariableRefresh,
    VariableSort,
)

from charts.dashboards.panel import DATASOURCE, Panel, Query, Unit, stat, timeseries

_CHECKPOINT = "modelscaling_checkpoint_duration_seconds"
_RUN = '{namespace="$namespace", name=~"$name"}'


def _newest(metric: str) -> str:
    """Return the query of a gauge of the whole run: while rank 0 moves from one pod to another,
    both have it for a moment.
    """
    return f"max by (name) ({metric}{_RUN})"


def _quantile(quantile: float, histogram: str) -> str:
    """Return the query of a quantile of what happened lately."""
    rate = f"rate({histogram}_bucket{_RUN}[$__rate_interval])"
    return f"histogram_quantile({quantile}, sum by (name, le) ({rate}))"


_STATS: tuple[Panel, ...] = (
    stat(
        title="Step",
        description="Optimizer steps done.",
        unit=Unit.SHORT,
        query=Query(expression=_newest("modelscaling_steps_total"), legend="{{name}}"),
    ),
    stat(
        title="Tokens",
        description="Tokens trained on so far, by all processes together.",
        unit=Unit.SHORT,
        query=Query(expression=_newest("modelscaling_tokens_total"), legend="{{name}}"),
    ),
    stat(
        title="Loss",
        description="Mean loss of the last step's global batch, in nats a token.",
        unit=Unit.COUNT,
        query=Query(expression=_newest("modelscaling_loss"), legend="{{name}}"),
    ),
    stat(
        title="Tokens/s",
        description="Throughput of the whole run over its last steps.",
        unit=Unit.SHORT,
        query=Query(expression=_newest("modelscaling_tokens_per_second"), legend="{{name}}"),
    ),
    stat(
        title="MFU",
        description="Model FLOPs utilisation: FLOPs that the model needs, as PaLM counts them, "
        "over those that the devices could do.",
        unit=Unit.RATIO,
        query=Query(expression=_newest("modelscaling_mfu_ratio"), legend="{{name}}"),
    ),
    stat(
        title="Parameters",
        description="Number of parameters of the model.",
        unit=Unit.SHORT,
        query=Query(expression=_newest("modelscaling_model_parameters"), legend="{{name}}"),
    ),
)

_COURSES: tuple[Panel, ...] = (
    timeseries(
        title="Loss",
        description="Mean loss of each step's global batch and of the held-out samples, in nats a "
        "token.",
        unit=Unit.COUNT,
        queries=(
            Query(expression=_newest("modelscaling_loss"), legend="{{name}} training"),
            Query(expression=_newest("modelscaling_validation_loss"), legend="{{name}} validation"),
        ),
    ),
    timeseries(
        title="Tokens/s",
        description="Tokens trained on in a second, by all processes together: as the trainer "
        "measures it over its last steps, and as the growth of the count, which is lower where "
        "steps are not all that happened.",
        unit=Unit.SHORT,
        queries=(
            Query(expression=_newest("modelscaling_tokens_per_second"), legend="{{name}} in steps"),
            Query(
                expression=f"sum by (name) (rate(modelscaling_tokens_total{_RUN}"
                "[$__rate_interval]))",
                legend="{{name}} over all",
            ),
        ),
    ),
    timeseries(
        title="Step time",
        description="Wall time of an optimizer step: half of the steps take less than p50, one "
        "in twenty more than p95.",
        unit=Unit.SECONDS,
        queries=(
            Query(
                expression=_quantile(0.5, "modelscaling_step_duration_seconds"),
                legend="{{name}} p50",
            ),
            Query(
                expression=_quantile(0.95, "modelscaling_step_duration_seconds"),
                legend="{{name}} p95",
            ),
        ),
    ),
    timeseries(
        title="MFU and goodput",
        description="MFU: FLOPs that the model needs over those that the devices could do. "
        "Goodput: time in useful steps over the time since the run started.",
        unit=Unit.RATIO,
        queries=(
            Query(expression=_newest("modelscaling_mfu_ratio"), legend="{{name}} MFU"),
            Query(expression=_newest("modelscaling_goodput_ratio"), legend="{{name}} goodput"),
        ),
    ),
    timeseries(
        title="Replicas",
        description="Pods of the run, by what they are doing.",
        unit=Unit.COUNT,
        queries=(
            Query(
                expression=f"max by (name, state) (modelscaling_replicas{_RUN})",
                legend="{{name}} {{state}}",
            ),
        ),
    ),
    timeseries(
        title="Checkpoint duration",
        description="Time from the start of a checkpoint until it is whole on the volume, over all "
        "so far: they are too rare for a rate. Training goes on meanwhile.",
        unit=Unit.SECONDS,
        queries=(
            Query(
                expression=f"sum by (name) ({_CHECKPOINT}_sum{_RUN}) "
                f"/ sum by (name) ({_CHECKPOINT}_count{_RUN})",
                legend="{{name}} mean",
            ),
            Query(
                expression=f"histogram_quantile(0.95, sum by (name, le) "
                f"({_CHECKPOINT}_bucket{_RUN}))",
                legend="{{name}} p95",
            ),
        ),
    ),
    timeseries(
        title="Memory",
        description="The most memory that one process of each pod has held: on its GPU, or "
        "resident where there is none.",
        unit=Unit.BYTES,
        queries=(
            Query(
                expression=f"max by (name, index) (modelscaling_memory_peak_bytes{_RUN})",
                legend="{{name}}-{{index}}",
            ),
        ),
    ),
    timeseries(
        title="Data wait",
        description="The part of the time in which the processes of each pod wait for samples; "
        "100 % is one process that always waits.",
        unit=Unit.RATIO,
        queries=(
            Query(
                expression=f"sum by (name, index) (rate(modelscaling_data_wait_seconds_total{_RUN}"
                "[$__rate_interval]))",
                legend="{{name}}-{{index}}",
            ),
        ),
    ),
)


def run_dashboard() -> dict[str, Any]:
    """Return the dashboard of a run as the JSON that Grafana imports."""
    dashboard = (
        Dashboard("ModelScaling / Run")
        .uid("modelscaling-run")
        .description("One training run, or several beside each other.")
        .tags(["modelscaling"])
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(
            _label_variable("namespace", "label_values(modelscaling_steps_total, namespace)")
        )
        .with_variable(
            _label_variable(
                "name", 'label_values(modelscaling_steps_total{namespace="$namespace"}, name)'
            ).multi(True)
        )
    )
    for number, panel in enumerate((*_STATS, *_COURSES), start=1):
        dashboard = dashboard.with_panel(panel.id(number))
    content: dict[str, Any] = json.loads(JSONEncoder().encode(dashboard.build()))
    return content


def render() -> str:
    """Return the file that the chart ships."""
    return json.dumps(run_dashboard(), indent=2, sort_keys=True) + "\n"


def _label_variable(name: str, query: str) -> QueryVariable:
    """Return a variable whose choices are the values of a label."""
    return (
        QueryVariable(name)
        .label(name.capitalize())
        .query(query)
        .datasource(DATASOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
    )

"""The reference of metrics, from the lists in the code of trainer and operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelscaling.protocol import AGENT_PORT
from modelscaling_trainer.agent.metric import METRICS as TRAINER_METRICS
from tools.generate.markdown import GENERATED, code, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelscaling_trainer.agent.metric import Metric

_INTRODUCTION = """# Metrics

All are in the format of Prometheus, on the port called `metrics`. Labels `namespace` and `name` are
those of the ModelScaling, so scrape with `honor_labels: true`. The series of a run end when the run
is deleted.
"""
_OF_A_RUN = f"""## Of a run

Pods of a run serve them on port {AGENT_PORT}. Those without the label `index` are of the whole run,
and only the pod with rank 0 has them.
"""
_HISTOGRAM_SUFFIXES = ("_bucket", "_count", "_sum")


def render() -> str:
    """Return `docs/reference/metrics.md`."""
    return "\n".join(
        [
            GENERATED,
            _INTRODUCTION,
            _OF_A_RUN,
            *_table(TRAINER_METRICS),
        ]
    )


def documented_series() -> set[str]:
    """Return the name of every series that a query may ask for."""
    return {series for metric in TRAINER_METRICS for series in _series(metric)}


def _table(metrics: tuple[Metric, ...]) -> Iterator[str]:
    return table(
        ("Metric", "Type", "Labels", "Meaning"),
        [
            (code(metric.exposed_name), metric.type, code(*metric.labels), metric.sentence)
            for metric in metrics
        ],
    )


def _series(metric: Metric) -> Iterator[str]:
    if metric.type == "histogram":
        yield from (f"{metric.name}{suffix}" for suffix in _HISTOGRAM_SUFFIXES)
    else:
        yield metric.exposed_name

"""The reference of metrics, from the lists in the code of trainer and operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client.metrics import MetricWrapperBase

from modelscaling.protocol import AGENT_PORT
from modelscaling_operator.metrics import Metrics
from modelscaling_trainer.agent.metric import METRICS as TRAINER_METRICS
from tools.generate.markdown import GENERATED, code, table

if TYPE_CHECKING:
    from collections.abc import Iterator

_INTRODUCTION = """# Metrics

All are in the format of Prometheus, on the port called `metrics`. Labels `namespace` and `name` are
those of the ModelScaling, so scrape with `honor_labels: true`. The series of a run end when the run
is deleted.
"""
_OF_A_RUN = f"""## Of a run

Pods of a run serve them on port {AGENT_PORT}. Those without the label `index` are of the whole run,
and only the pod with rank 0 has them.
"""
_OF_THE_OPERATOR = """## Of the operator
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One metric of the reference; `name` is the one that queries have."""

    name: str
    type: str
    labels: tuple[str, ...]
    sentence: str

    @property
    def series(self) -> tuple[str, ...]:
        """The names of the series that Prometheus has of it."""
        if self.type == "histogram":
            return tuple(f"{self.name}_{part}" for part in ("bucket", "count", "created", "sum"))
        return (self.name,)


def render() -> str:
    """Return `docs/reference/metrics.md`."""
    return "\n".join(
        [
            GENERATED,
            _INTRODUCTION,
            _OF_A_RUN,
            *_table(trainer_metrics()),
            _OF_THE_OPERATOR,
            *_table(operator_metrics()),
        ]
    )


def trainer_metrics() -> list[Entry]:
    """Return the metrics that the pods of a run have."""
    return [
        Entry(
            name=metric.exposed_name,
            type=metric.type,
            labels=metric.labels,
            sentence=metric.sentence,
        )
        for metric in TRAINER_METRICS
    ]


def operator_metrics() -> list[Entry]:
    """Return the metrics that the operator has."""
    collectors = [
        collector
        for collector in vars(Metrics()).values()
        if isinstance(collector, MetricWrapperBase)
    ]
    return [entry for collector in collectors for entry in _entries(collector)]


def _entries(collector: MetricWrapperBase) -> Iterator[Entry]:
    for family in collector.describe():
        yield Entry(
            name=f"{family.name}_total" if family.type == "counter" else family.name,
            type=family.type,
            # The library has no public name for them, and a metric without values shows none.
            labels=tuple(collector._labelnames),  # noqa: SLF001
            sentence=family.documentation,
        )


def _table(entries: list[Entry]) -> Iterator[str]:
    return table(
        ("Metric", "Type", "Labels", "Meaning"),
        [(code(entry.name), entry.type, code(*entry.labels), entry.sentence) for entry in entries],
    )

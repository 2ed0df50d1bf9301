"""A picture of a run from what Prometheus stored of it: loss and throughput over time."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

_TIMEOUT_S = 10
_POINTS = 600
mpl.use("agg")


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """A stretch of wall-clock time, in seconds since the epoch."""

    start: float
    end: float


def query_range(prometheus: str, expression: str, period: Period) -> list[tuple[float, float]]:
    """Return (time, value) of the one series that `expression` yields; empty if it yields none."""
    step = max((period.end - period.start) / _POINTS, 1.0)
    query = urllib.parse.urlencode(
        {"query": expression, "start": period.start, "end": period.end, "step": step}
    )
    url = f"{prometheus}/api/v1/query_range?{query}"
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - http of ours
        series = json.load(answer)["data"]["result"]
    return [(float(t), float(v)) for t, v in series[0]["values"]] if series else []


def draw(
    prometheus: str,
    *,
    namespace: str,
    name: str,
    period: Period,
    rescales: Sequence[Mapping[str, Any]],
    file: Path,
) -> None:
    """Write the picture of a run to `file`; `rescales` is its ledger, marked in the picture."""
    run = f'{{namespace="{namespace}", name="{name}"}}'
    figure = Figure(figsize=(9, 6), layout="constrained")
    loss, speed = figure.subplots(2, 1, sharex=True)
    _plot(loss, query_range(prometheus, f"modelscaling_loss{run}", period), period, "training")
    _plot(
        loss,
        query_range(prometheus, f"modelscaling_validation_loss{run}", period),
        period,
        "validation",
    )
    _plot(
        speed,
        query_range(prometheus, f"modelscaling_tokens_per_second{run}", period),
        period,
        "tokens/s",
    )
    loss.set_title(f"{namespace}/{name}", loc="left", fontweight="bold")
    loss.set_ylabel("loss (nats a token)")
    speed.set_ylabel("tokens a second")
    speed.set_ylim(bottom=0)
    speed.set_xlabel("seconds since apply")
    for record in rescales:
        _mark(loss, speed, record, period)
    for axes in (loss, speed):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    loss.legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def _plot(axes: Axes, points: list[tuple[float, float]], period: Period, label: str) -> None:
    axes.plot([t - period.start for t, _ in points], [v for _, v in points], label=label)


def _mark(loss: Axes, speed: Axes, record: Mapping[str, Any], period: Period) -> None:
    """Mark a change of the group: a line through both, its cost beside it."""
    at = datetime.fromisoformat(record["time"]).timestamp() - period.start
    for axes in (loss, speed):
        axes.axvline(at, color="0.6", linewidth=1, linestyle="--")
    loss.annotate(
        f"{record['from']} → {record['to']}\n{record['downtimeSeconds']} s, "
        f"{record['lostSteps']} steps lost",
        xy=(at, 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(4, 0),
        textcoords="offset points",
        fontsize=7,
        rotation=90,
        va="top",
    )

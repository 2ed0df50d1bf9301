"""The agent's metrics as Prometheus reads them, from what the workers last said.

Totals are the run's own numbers and not counted here, so they stay true when the pod with rank 0
is replaced. The run's series are exposed only by the pod that has rank 0: they would be counted
twice otherwise.
"""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from prometheus_client import Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from modelscaling_trainer.agent import metric as metrics
from modelscaling_trainer.agent.metric import MetricType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.metrics_core import Metric as Family

    from modelscaling.protocol import GrowthRejection, Progress
    from modelscaling_trainer.agent.metric import Metric
    from modelscaling_trainer.figures import ProcessFigures

_SECONDS_BUCKETS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5),
    *(10.0, 15.0, 30.0, 60.0, 120.0, 300.0),
)


class RunMetrics(Collector):
    """Takes what the workers say and yields it when Prometheus asks."""

    def __init__(
        self,
        *,
        namespace: str,
        name: str,
        index: int,
        parameters: Callable[[], int],
        has_first_rank: Callable[[], bool],
        worker_failures: Callable[[], int],
    ) -> None:
        """Take the labels, and what the agent knows at the time of a scrape."""
        self._run = (namespace, name)
        self._pod = (namespace, name, str(index))
        self._parameters = parameters
        self._has_first_rank = has_first_rank
        self._worker_failures = worker_failures
        self._progress: Progress | None = None
        self._validation_loss: float | None = None
        self._peak_memory_bytes = 0
        self._data_wait_s = 0.0
        self._peer_wait_s = 0.0
        self._last_step: list[ProcessFigures] = []
        """Of those of the pod's processes that have told them."""
        self._checkpoint_seconds: float | None = None
        self._step_durations = self._histogram(metrics.STEP_DURATION)
        self._checkpoint_durations = self._histogram(metrics.CHECKPOINT_DURATION)

    def on_progress(self, progress: Progress) -> None:
        """Take the run's numbers after a step."""
        self._progress = progress
        if progress.validation_loss is not None:
            self._validation_loss = progress.validation_loss
        if progress.step_seconds is not None:
            self._step_durations.labels(*self._run).observe(progress.step_seconds)

    def on_figures(self, rank: int, figures: ProcessFigures) -> None:
        """Take one process' own numbers after a step."""
        self._peak_memory_bytes = max(self._peak_memory_bytes, figures.peak_memory_bytes)
        self._data_wait_s += figures.data_wait_seconds
        self._peer_wait_s += figures.peer_wait_seconds
        of_same_step = [last for last in self._last_step if last.step == figures.step]
        self._last_step = [*of_same_step, figures]
        if rank == 0 and figures.checkpoint_seconds not in (None, self._checkpoint_seconds):
            # The figures repeat the last checkpoint's until the next one ends.
            self._checkpoint_seconds = figures.checkpoint_seconds
            self._checkpoint_durations.labels(*self._run).observe(figures.checkpoint_seconds)

    def on_growth_rejected(self, rejection: GrowthRejection) -> None:
        """Show nothing of it: it is in the run's status."""

    def collect(self) -> Iterator[Family]:
        """Yield the metrics that have a value."""
        yield self._family(metrics.WORKER_FAILURES, self._worker_failures())
        if self._peak_memory_bytes:
            yield self._family(metrics.MEMORY_PEAK, self._peak_memory_bytes)
            yield self._family(metrics.DATA_WAIT, self._data_wait_s)
            yield self._family(metrics.PEER_WAIT, self._peer_wait_s)
            yield from self._collect_last_step()
        if self._progress is None or not self._has_first_rank():
            return
        values = {
            metrics.STEPS: self._progress.step,
            metrics.TOKENS: self._progress.tokens,
            metrics.LOSS: self._progress.loss,
            metrics.VALIDATION_LOSS: self._validation_loss,
            metrics.TOKENS_PER_SECOND: self._progress.tokens_per_second,
            metrics.MFU: self._progress.mfu_ratio,
            metrics.GOODPUT: self._progress.goodput_ratio,
            metrics.SCALING_EFFICIENCY: self._progress.scaling_efficiency_ratio,
            metrics.GRADIENT_NORM: self._progress.gradient_norm,
            metrics.GRADIENT_NOISE_SCALE: self._progress.gradient_noise_scale,
            metrics.MODEL_PARAMETERS: self._parameters(),
        }
        for metric, value in values.items():
            if value is not None:
                yield self._family(metric, value)
        yield from self._step_durations.collect()
        yield from self._checkpoint_durations.collect()

    def _collect_last_step(self) -> Iterator[Family]:
        skew = max(figures.step_skew_seconds for figures in self._last_step)
        yield self._family(metrics.STEP_SKEW, skew)
        ratios = [
            figures.communication_ratio
            for figures in self._last_step
            if figures.communication_ratio is not None
        ]
        if ratios:
            yield self._family(metrics.COMMUNICATION, fmean(ratios))

    def _family(self, metric: Metric, value: float) -> Family:
        kind = CounterMetricFamily if metric.type is MetricType.COUNTER else GaugeMetricFamily
        family = kind(metric.name, metric.sentence, labels=metric.labels)
        family.add_metric(self._pod if metric.is_of_pod else self._run, value)
        return family

    def _histogram(self, metric: Metric) -> Histogram:
        """Return a histogram that only this collector exposes."""
        return Histogram(
            metric.name,
            metric.sentence,
            labelnames=metric.labels,
            buckets=_SECONDS_BUCKETS,
            registry=None,
        )

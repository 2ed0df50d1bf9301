from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from modelscaling_trainer.agent.exposition import RunMetrics
from modelscaling_trainer.agent.metric import METRICS, MetricType
from tests.trainer.agent_builders import make_figures, make_progress

RUN = {"namespace": "default", "name": "tiny"}
POD = RUN | {"index": "1"}


class Leadership:
    """Whether the pod has rank 0; tests change it."""

    def __init__(self) -> None:
        self.is_here = True

    def __call__(self) -> bool:
        return self.is_here


@pytest.fixture
def leadership() -> Leadership:
    return Leadership()


@pytest.fixture
def metrics(leadership: Leadership) -> RunMetrics:
    return RunMetrics(
        namespace="default",
        name="tiny",
        index=1,
        parameters=lambda: 98_624,
        has_first_rank=leadership,
        worker_failures=lambda: 2,
    )


@pytest.fixture
def registry(metrics: RunMetrics) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(metrics)
    return registry


def value(registry: CollectorRegistry, series: str, labels: dict[str, str] = RUN) -> float | None:
    return registry.get_sample_value(series, labels)


def test_nothing_but_counts_of_failures_is_exposed_before_there_is_a_true_value(
    registry: CollectorRegistry,
) -> None:
    assert [family.name for family in registry.collect()] == ["modelscaling_worker_failures"]
    assert value(registry, "modelscaling_worker_failures_total", POD) == 2


def test_totals_are_the_runs_own_after_a_restart_too(
    metrics: RunMetrics, registry: CollectorRegistry
) -> None:
    metrics.on_progress(make_progress(step=1000))

    assert value(registry, "modelscaling_steps_total") == 1000
    assert value(registry, "modelscaling_tokens_total") == 512_000


def test_the_runs_numbers_are_those_of_the_last_step(
    metrics: RunMetrics, registry: CollectorRegistry
) -> None:
    metrics.on_progress(make_progress(step=1, loss=5.5))
    metrics.on_progress(make_progress(step=2, loss=5.25))

    assert value(registry, "modelscaling_loss") == 5.25
    assert value(registry, "modelscaling_tokens_per_second") == 2048
    assert value(registry, "modelscaling_mfu_ratio") == 0.5
    assert value(registry, "modelscaling_goodput_ratio") == 0.875
    assert value(registry, "modelscaling_model_parameters") == 98_624


def test_the_last_validation_loss_stays(metrics: RunMetrics, registry: CollectorRegistry) -> None:
    metrics.on_progress(make_progress(step=1))
    assert value(registry, "modelscaling_validation_loss") is None

    metrics.on_progress(make_progress(step=2, validation_loss=4.5))
    metrics.on_progress(make_progress(step=3))
    assert value(registry, "modelscaling_validation_loss") == 4.5


def test_each_step_counts_once_in_the_histogram(
    metrics: RunMetrics, registry: CollectorRegistry
) -> None:
    for step, seconds in enumerate((0.004, 0.3, 42.0), start=1):
        metrics.on_progress(make_progress(step=step, step_seconds=seconds))

    buckets = {
        bound: value(registry, "modelscaling_step_duration_seconds_bucket", RUN | {"le": bound})
        for bound in ("0.005", "0.5", "60.0", "300.0", "+Inf")
    }
    assert buckets == {"0.005": 1, "0.5": 2, "60.0": 3, "300.0": 3, "+Inf": 3}
    assert value(registry, "modelscaling_step_duration_seconds_sum") == pytest.approx(42.304)


def test_a_checkpoint_counts_once_though_each_step_repeats_it(
    metrics: RunMetrics, registry: CollectorRegistry
) -> None:
    metrics.on_progress(make_progress())
    for seconds in (1.5, 1.5, 1.5, 2.5, 2.5):
        metrics.on_figures(0, make_figures(checkpoint_seconds=seconds))
    metrics.on_figures(1, make_figures(checkpoint_seconds=9.0))

    assert value(registry, "modelscaling_checkpoint_duration_seconds_count") == 2
    assert value(registry, "modelscaling_checkpoint_duration_seconds_sum") == 4.0


def test_a_pod_without_rank_0_exposes_only_its_own_numbers(
    metrics: RunMetrics, registry: CollectorRegistry, leadership: Leadership
) -> None:
    metrics.on_progress(make_progress())
    metrics.on_figures(2, make_figures(peak_memory_bytes=1024))
    metrics.on_figures(3, make_figures(peak_memory_bytes=4096))

    leadership.is_here = False

    assert value(registry, "modelscaling_steps_total") is None
    assert value(registry, "modelscaling_step_duration_seconds_count") is None
    assert value(registry, "modelscaling_memory_peak_bytes", POD) == 4096
    assert value(registry, "modelscaling_data_wait_seconds_total", POD) == 1.0
    assert value(registry, "modelscaling_peer_wait_seconds_total", POD) == 0.5


def test_skew_is_that_of_the_slowest_process_and_communication_the_mean_of_the_last_step(
    metrics: RunMetrics, registry: CollectorRegistry
) -> None:
    metrics.on_figures(0, make_figures(1, step_skew_seconds=9.0, communication_ratio=0.875))
    metrics.on_figures(0, make_figures(2, step_skew_seconds=-0.5, communication_ratio=0.75))
    metrics.on_figures(1, make_figures(2, step_skew_seconds=0.25, communication_ratio=0.25))

    assert value(registry, "modelscaling_step_skew_seconds", POD) == 0.25
    assert value(registry, "modelscaling_communication_ratio", POD) == 0.5


def test_a_share_of_communication_that_is_not_known_is_not_exposed(
    metrics: RunMetrics, registry: CollectorRegistry
) -> None:
    metrics.on_figures(0, make_figures(communication_ratio=None))

    assert value(registry, "modelscaling_communication_ratio", POD) is None
    assert value(registry, "modelscaling_step_skew_seconds", POD) == 0.0625


def test_the_list_is_what_is_exposed(metrics: RunMetrics, registry: CollectorRegistry) -> None:
    metrics.on_progress(make_progress(validation_loss=4.5, gradient_norm=1.5))
    metrics.on_figures(0, make_figures(checkpoint_seconds=1.0))

    exposed = {(family.name, family.type, family.documentation) for family in registry.collect()}

    assert exposed == {(metric.name, metric.type.value, metric.sentence) for metric in METRICS}


def test_labels_are_bounded(metrics: RunMetrics, registry: CollectorRegistry) -> None:
    metrics.on_progress(make_progress(validation_loss=4.5, gradient_norm=1.5))
    metrics.on_figures(0, make_figures(checkpoint_seconds=1.0))
    declared = {metric.name: set(metric.labels) for metric in METRICS}

    for family in registry.collect():
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == declared[family.name]


def test_names_carry_their_unit() -> None:
    units = (
        "_bytes",
        "_seconds",
        "_ratio",
        "_loss",
        "_parameters",
        "_per_second",
        "_norm",
        "_scale",
    )
    for metric in METRICS:
        assert metric.name.endswith(units) or metric.type is MetricType.COUNTER
        assert metric.exposed_name.endswith("_total") == (metric.type is MetricType.COUNTER)

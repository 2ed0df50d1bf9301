"""The operator's own metrics; the series of a run go with the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from modelscaling.api.conditions import Reason

if TYPE_CHECKING:
    from modelscaling.api.group_status import RescaleRecord
    from modelscaling_operator.identity import RunIdentity

_SECONDS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
_RECOVERIES = frozenset(
    {
        Reason.GROUP_BROKE.value,
        Reason.NODE_LOST.value,
        Reason.PODS_SEVERED.value,
        Reason.WORKER_REPLACED.value,
    }
)
_STATES = ("wished", "present", "ready")


class Metrics:
    """The operator's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconcile_duration = Histogram(
            "modelscaling_reconcile_duration_seconds",
            "Time of one look at a run: to observe, to decide and to act, in seconds.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self.registry,
        )
        self.reconcile_errors = Counter(
            "modelscaling_reconcile_errors",
            "Looks at a run that ended in an error and were tried again.",
            registry=self.registry,
        )
        self.replicas = Gauge(
            "modelscaling_replicas",
            "Pods of a run: wished by its spec, present (not ended), ready (warm or training).",
            ["namespace", "name", "state"],
            registry=self.registry,
        )
        self.rescale_downtime = Histogram(
            "modelscaling_rescale_downtime_seconds",
            (
                "Time in which no step was computed because the group changed, in seconds, by the "
                "cause of the change."
            ),
            ["cause"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.rescale_lost_steps = Counter(
            "modelscaling_rescale_lost_steps",
            "Optimizer steps that had to be done again after a change of the group, by its cause.",
            ["cause"],
            registry=self.registry,
        )
        self.recovery = Histogram(
            "modelscaling_recovery_seconds",
            (
                "Time in which no step was computed because a worker, a pod or a node was lost, in "
                "seconds."
            ),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.loop_lag = Gauge(
            "modelscaling_event_loop_lag_seconds",
            "How late the operator's event loop last was, in seconds.",
            registry=self.registry,
        )
        self.watch_age = Gauge(
            "modelscaling_watch_age_seconds",
            (
                "Age of the operator's oldest own write that its watch has not shown yet, in "
                "seconds; 0 if it has shown all."
            ),
            registry=self.registry,
        )

    def show_replicas(self, run: RunIdentity, *, wished: int, present: int, ready: int) -> None:
        """Show how many pods a run has."""
        for state, number in zip(_STATES, (wished, present, ready), strict=True):
            self.replicas.labels(run.namespace, run.name, state).set(number)

    def add_rescale(self, record: RescaleRecord) -> None:
        """Count a change of a group."""
        downtime_s = float(record.downtime_seconds)
        self.rescale_downtime.labels(record.cause).observe(downtime_s)
        self.rescale_lost_steps.labels(record.cause).inc(record.lost_steps)
        if record.cause in _RECOVERIES:
            self.recovery.observe(downtime_s)

    def forget(self, run: RunIdentity) -> None:
        """Let the series of a run that is gone disappear."""
        for state in _STATES:
            self.replicas.remove(run.namespace, run.name, state)

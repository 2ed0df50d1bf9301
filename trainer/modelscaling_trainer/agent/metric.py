"""Every metric that an agent exposes: the only list; the reference in the documentation is made
from it.

A counter's name has no `_total` here; the exposition format adds it. All carry the labels
`namespace` and `name` of the run; those of a pod also `index`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class MetricType(StrEnum):
    """How a metric's value behaves."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric; `name` ends in its unit."""

    name: str
    type: MetricType
    sentence: str
    is_of_pod: bool = False
    """Whether every pod has its own value; otherwise only the pod with rank 0 exposes it."""

    @property
    def exposed_name(self) -> str:
        """The name as queries have it."""
        return f"{self.name}_total" if self.type is MetricType.COUNTER else self.name

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of its labels."""
        return ("namespace", "name", "index") if self.is_of_pod else ("namespace", "name")


STEPS = Metric(
    name="modelscaling_steps",
    type=MetricType.COUNTER,
    sentence="Optimizer steps of the run so far, steps before a restart included.",
)
TOKENS = Metric(
    name="modelscaling_tokens",
    type=MetricType.COUNTER,
    sentence="Tokens that the run has trained on so far, those before a restart included.",
)
STEP_DURATION = Metric(
    name="modelscaling_step_duration_seconds",
    type=MetricType.HISTOGRAM,
    sentence="Wall time of an optimizer step, in seconds.",
)
CHECKPOINT_DURATION = Metric(
    name="modelscaling_checkpoint_duration_seconds",
    type=MetricType.HISTOGRAM,
    sentence="Time from a checkpoint's start until it is complete on the volume, in seconds.",
)
LOSS = Metric(
    name="modelscaling_loss",
    type=MetricType.GAUGE,
    sentence="Mean loss of the last step's global batch, in nats a token.",
)
VALIDATION_LOSS = Metric(
    name="modelscaling_validation_loss",
    type=MetricType.GAUGE,
    sentence="Mean loss over the held-out samples when it was last measured, in nats a token.",
)
TOKENS_PER_SECOND = Metric(
    name="modelscaling_tokens_per_second",
    type=MetricType.GAUGE,
    sentence="Throughput of the whole run over the last steps, in tokens a second.",
)
MFU = Metric(
    name="modelscaling_mfu_ratio",
    type=MetricType.GAUGE,
    sentence="Model FLOPs utilisation, 0 to 1, with the model's FLOPs as PaLM counts them.",
)
GOODPUT = Metric(
    name="modelscaling_goodput_ratio",
    type=MetricType.GAUGE,
    sentence="Time in useful steps divided by the wall time since the first group, 0 to 1.",
)
SCALING_EFFICIENCY = Metric(
    name="modelscaling_scaling_efficiency_ratio",
    type=MetricType.GAUGE,
    sentence="Part of a step's time in which processes did not wait for each other, 0 to 1.",
)
GRADIENT_NOISE_SCALE = Metric(
    name="modelscaling_gradient_noise_scale",
    type=MetricType.GAUGE,
    sentence=(
        "Batch size, in samples, above which larger batches stop paying (McCandlish et al. 2018); "
        "only where two or more processes share the batch."
    ),
)
GRADIENT_NORM = Metric(
    name="modelscaling_gradient_norm",
    type=MetricType.GAUGE,
    sentence="Norm of the last step's gradient over the whole model, before clipping.",
)
MODEL_PARAMETERS = Metric(
    name="modelscaling_model_parameters",
    type=MetricType.GAUGE,
    sentence="Number of trainable parameters of the model.",
)
MEMORY_PEAK = Metric(
    name="modelscaling_memory_peak_bytes",
    type=MetricType.GAUGE,
    sentence=(
        "Most memory that one process of the pod has held, in bytes: on its GPU, or resident "
        "where there is none."
    ),
    is_of_pod=True,
)
DATA_WAIT = Metric(
    name="modelscaling_data_wait_seconds",
    type=MetricType.COUNTER,
    sentence="Time that steps waited for samples, in seconds, summed over the pod's processes.",
    is_of_pod=True,
)

PEER_WAIT = Metric(
    name="modelscaling_peer_wait_seconds",
    type=MetricType.COUNTER,
    sentence=(
        "Time that steps waited for other processes, in seconds, summed over the pod's processes: "
        "least in the pod that the others wait for."
    ),
    is_of_pod=True,
)
STEP_SKEW = Metric(
    name="modelscaling_step_skew_seconds",
    type=MetricType.GAUGE,
    sentence=(
        "How much longer than the mean of all processes the slowest one of the pod worked on the "
        "last step, waits for other processes left out, in seconds; below 0 in a fast pod."
    ),
    is_of_pod=True,
)
COMMUNICATION = Metric(
    name="modelscaling_communication_ratio",
    type=MetricType.GAUGE,
    sentence=(
        "Part of the last step's time in which processes of the pod were blocked in collectives "
        "or by a pipeline's idle time, their mean, 0 to 1; on CPUs only."
    ),
    is_of_pod=True,
)

WORKER_FAILURES = Metric(
    name="modelscaling_worker_failures",
    type=MetricType.COUNTER,
    sentence=(
        "Worker processes of the pod that have died, failed or been given up as hung; each was "
        "replaced in the pod."
    ),
    is_of_pod=True,
)

METRICS = (
    STEPS,
    TOKENS,
    STEP_DURATION,
    CHECKPOINT_DURATION,
    LOSS,
    VALIDATION_LOSS,
    TOKENS_PER_SECOND,
    MFU,
    GOODPUT,
    SCALING_EFFICIENCY,
    GRADIENT_NORM,
    GRADIENT_NOISE_SCALE,
    MODEL_PARAMETERS,
    MEMORY_PEAK,
    DATA_WAIT,
    PEER_WAIT,
    STEP_SKEW,
    COMMUNICATION,
    WORKER_FAILURES,
)

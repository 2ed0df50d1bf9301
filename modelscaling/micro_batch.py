"""How many samples a process computes at once: one number for the planner and the trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelscaling.shape import divisors

if TYPE_CHECKING:
    from modelscaling.mesh import Mesh

_TOKENS_AT_ONCE = 16_384
"""Enough to fill matrix products; more would only take memory."""

_FEW_BUBBLES = 2
"""Micro batches for each pipeline stage: 1F1B idles (stages - 1) / micro batches of the time."""


def micro_batch_size(part: int, *, context_length: int, mesh: Mesh, declared: int | None) -> int:
    """Return how many of the `part` samples of its data rank a process computes at once.

    `context_length` is that of a whole sample; a process computes 1/`mesh.context` of it.

    Raises:
        ValueError: the declared size is not legal, or none is, as the pipeline needs more micro
            batches than there are samples; the message says what would be.
    """
    legal = legal_micro_batch_sizes(part, mesh)
    if not legal:
        raise ValueError(_too_few_samples(part, mesh))
    if declared is not None and declared not in legal:
        raise ValueError(_not_legal(declared, part, mesh))
    return declared or _chosen(legal, part, context_length / mesh.context, mesh)


def legal_micro_batch_sizes(part: int, mesh: Mesh) -> list[int]:
    """Return the sizes, in ascending order, that divide `part` and fill the pipeline: at least as
    many micro batches as stages, and whole rounds of the pipeline where stages are interleaved
    (torch's ScheduleInterleaved1F1B asks for that).
    """
    return [size for size in divisors(part) if _fills(part // size, mesh)]


def _fills(micro_batches: int, mesh: Mesh) -> bool:
    is_whole_round = mesh.stagesPerProcess == 1 or micro_batches % mesh.pipeline == 0
    return mesh.pipeline == 1 or (micro_batches >= mesh.stages and is_whole_round)


def _chosen(legal: list[int], part: int, tokens: float, mesh: Mesh) -> int:
    """Return the largest size of moderate memory that leaves the pipeline few bubbles."""
    fitting = [size for size in legal if size * tokens <= _TOKENS_AT_ONCE] or legal[:1]
    if mesh.pipeline == 1:
        return fitting[-1]
    busy = [size for size in fitting if part // size >= _FEW_BUBBLES * mesh.stages]
    return max(busy, default=fitting[-1])


def _too_few_samples(part: int, mesh: Mesh) -> str:
    needed = mesh.stages * mesh.data_parallel
    return (
        f"globalBatchSize={part * mesh.data_parallel} leaves {part} samples to each of "
        f"{mesh.data_parallel} data-parallel parts, which do not make "
        f"{_expected_micro_batches(mesh)}; set globalBatchSize to a multiple of {needed}, or "
        f"lower pipeline or stagesPerProcess"
    )


def _not_legal(declared: int, part: int, mesh: Mesh) -> str:
    legal = legal_micro_batch_sizes(part, mesh)
    if part % declared:
        problem = f"does not divide a process' part of the global batch, {part} samples"
    else:
        problem = (
            f"cuts a process' part of the global batch, {part} samples, into {part // declared} "
            f"micro batches, not into {_expected_micro_batches(mesh)}"
        )
    return f"microBatchSize={declared} {problem}; set it to one of {legal}, or leave it out"


def _expected_micro_batches(mesh: Mesh) -> str:
    rounds = f", a multiple of pipeline={mesh.pipeline}" if mesh.stagesPerProcess > 1 else ""
    return (
        f"at least the {mesh.stages} micro batches that {mesh.stages} pipeline stages need{rounds}"
    )

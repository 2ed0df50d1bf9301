"""Which meshes a workload can be laid out on: every rule that is broken, with what would be legal.

Weights that fully-sharded processes cannot share evenly are legal: some then hold less.
"""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING

from modelscaling.api.training import CompileMode
from modelscaling.api.validation import Problem
from modelscaling.micro_batch import legal_micro_batch_sizes, micro_batch_size
from modelscaling.shape import divisors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from modelscaling.mesh import Mesh
    from modelscaling.plan.workload import Workload
    from modelscaling.shape import ModelShape


def broken_rules(workload: Workload, mesh: Mesh) -> Iterator[Problem]:
    """Yield what forbids `mesh`, the cheapest rules first; nothing where it is legal."""
    yield from _processes(workload, mesh)
    yield from _placement(workload, mesh)
    yield from _compiler(workload, mesh)
    yield from _tensor(workload.shape, mesh)
    yield from _pipeline(workload.shape, mesh)
    yield from _context(workload.shape, mesh)
    yield from _batch(workload, mesh)


def _processes(workload: Workload, mesh: Mesh) -> Iterator[Problem]:
    if mesh.size == workload.processes:
        return
    yield _problem(
        "parallelism",
        f"the mesh {mesh} has {mesh.size} processes, not the replicas={workload.replicas} × "
        f"processesPerReplica={workload.processes_per_replica} = {workload.processes}; change "
        f"replicas × processesPerReplica to {mesh.size}, or the axes to a product of "
        f"{workload.processes}",
    )


def _placement(workload: Workload, mesh: Mesh) -> Iterator[Problem]:
    if workload.tensor_fits(mesh.tensor):
        return
    per_pod = workload.processes_per_replica
    yield _problem(
        "parallelism.tensor",
        f"tensor={mesh.tensor} does not divide processesPerReplica={per_pod}, so it would reach "
        f"across pods; set tensor to {_nearest(mesh.tensor, divisors(per_pod))}, or "
        f"tensorPlacement to AcrossPods",
    )


def _compiler(workload: Workload, mesh: Mesh) -> Iterator[Problem]:
    if mesh.tensor == 1 or workload.compile is not CompileMode.ALWAYS:
        return
    yield _problem(
        "training.compile",
        f"Always does not go with tensor={mesh.tensor}: torch compiles tensor parallelism to other "
        f"gradients; set compile to Auto or Never, or tensor to 1",
    )


def _tensor(shape: ModelShape, mesh: Mesh) -> Iterator[Problem]:
    obstacles = [*_tensor_obstacles(shape, mesh.tensor)]
    tokens = shape.context_length // mesh.context
    if mesh.tensor > 1 and tokens % mesh.tensor:
        obstacles.append(f"the {tokens} tokens that a process computes of a sample")
    if not obstacles:
        return
    # Not only divisors of what is in the way: what is proposed is legal in every respect.
    legal = (n for n in divisors(gcd(shape.heads, tokens)) if not [*_tensor_obstacles(shape, n)])
    nearest = _nearest(mesh.tensor, legal)
    for obstacle in obstacles:
        yield _problem(
            "parallelism.tensor",
            f"tensor={mesh.tensor} does not divide {obstacle}; set tensor to {nearest}",
        )


def _tensor_obstacles(shape: ModelShape, tensor: int) -> Iterator[str]:
    """Yield what cannot be cut into `tensor` parts."""
    if shape.heads % tensor:
        yield f"heads={shape.heads}"
    rows = shape.kv_heads * shape.head_size
    # Where there are fewer heads than parts, neighbours share a head and compute it from parts.
    if (shape.kv_heads % tensor and tensor % shape.kv_heads) or rows % tensor:
        yield f"kvHeads={shape.kv_heads} (of headSize={shape.head_size}), nor is it a multiple"
    if shape.feed_forward_size % tensor:
        yield f"feedForwardSize={shape.feed_forward_size}"
    if shape.vocabulary_size % tensor:
        yield f"vocabularySize={shape.vocabulary_size}"


def _pipeline(shape: ModelShape, mesh: Mesh) -> Iterator[Problem]:
    if mesh.stages <= shape.layers:
        return
    fewer = f"set pipeline to at most {max(shape.layers // mesh.stagesPerProcess, 1)}"
    if mesh.stagesPerProcess > 1:
        fewer += f", or stagesPerProcess to at most {max(shape.layers // mesh.pipeline, 1)}"
    yield _problem(
        "parallelism.pipeline",
        f"pipeline={mesh.pipeline} × stagesPerProcess={mesh.stagesPerProcess} are {mesh.stages} "
        f"stages, more than layers={shape.layers}; {fewer}",
    )


def _context(shape: ModelShape, mesh: Mesh) -> Iterator[Problem]:
    length = shape.context_length
    if mesh.context == 1 or length % (2 * mesh.context) == 0:
        return
    legal = {1, *(n for n in divisors(length) if length % (2 * n) == 0)}
    yield _problem(
        "parallelism.context",
        f"contextLength={length} is not divisible by 2 × context={mesh.context} (each process has "
        f"a part of the head and one of the tail); set context to "
        f"{_nearest(mesh.context, sorted(legal))}, or contextLength to a multiple of "
        f"{2 * mesh.context}",
    )


def _batch(workload: Workload, mesh: Mesh) -> Iterator[Problem]:
    batch, parts = workload.global_batch_size, mesh.data_parallel
    if batch % parts:
        yield _problem("training.globalBatchSize", _uneven_batch(workload, mesh))
        return
    try:
        micro_batch_size(
            workload.samples_of(mesh),
            context_length=workload.shape.context_length,
            mesh=mesh,
            declared=workload.micro_batch_size,
        )
    except ValueError as error:
        has_legal = legal_micro_batch_sizes(workload.samples_of(mesh), mesh)
        field = "training.microBatchSize" if has_legal else "training.globalBatchSize"
        yield _problem(field, str(error))


def _uneven_batch(workload: Workload, mesh: Mesh) -> str:
    parts = mesh.data_parallel
    if mesh.size == parts:
        size = "replicas × processesPerReplica"
        origin = (
            f"replicas={workload.replicas} × processesPerReplica={workload.processes_per_replica}"
        )
    else:
        size = "dataReplicate × dataShard"
        origin = f"dataReplicate={mesh.dataReplicate} × dataShard={mesh.dataShard}"
    return (
        f"{workload.global_batch_size} is not divisible by the data-parallel size {parts} "
        f"({origin}); change {size} to {_nearest(parts, divisors(workload.global_batch_size))}, "
        f"or globalBatchSize to a multiple of {parts}"
    )


def _problem(field: str, message: str) -> Problem:
    return Problem(field=f"spec.{field}", message=message)


def _nearest(size: int, legal: Iterable[int]) -> str:
    """Return the legal sizes on either side of `size`, for a message; `legal` ascends."""
    sizes = list(legal)
    below = [n for n in sizes if n < size][-1:]
    above = [n for n in sizes if n > size][:1]
    return " or ".join(str(n) for n in below + above)

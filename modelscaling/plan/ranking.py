"""Which of the meshes that can be had a run is given: the order of preference.

This is where a cost model that is calibrated on measurements belongs. Until there is one, the
order is a rule: use no more ways of parallelism than are needed, the ones that talk least first.

1. No pipeline, else as few stages as can be: it idles, and its first stage keeps as many
   activations as the whole model has. It is for batches that cannot be cut further.
2. No context axis, else as small a one as can be: it gathers keys and values in every layer. It is
   for samples that are too long for one process.
3. No tensor axis, else as small a one as can be: it talks in every layer, within a pod.
4. Of the data axes copies of the whole model, which talk once a step; then fully-sharded weights,
   which talk twice as much; then sharded copies, which need more memory than those.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from modelscaling.mesh import Mesh
from modelscaling.shape import divisors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelscaling.plan.workload import Workload

_COST = {
    "pipeline": "more pipeline stages idle more",
    "context": "cutting samples gathers keys and values in every layer",
    "tensor": "cutting products talks in every layer",
}
_SHARDED_COST = "sharded weights are gathered in every pass, and whole ones fit"
_HYBRID_COST = "copies of sharded weights need more memory than weights sharded over all"


def mesh_families(workload: Workload) -> Iterator[Mesh]:
    """Yield the meshes of the workload's processes whose data axis is copies, in the order of
    preference: each stands for its family, all of which are legal if it is.

    Left out are more stages than layers, and tensor axes that would reach across pods.
    """
    for pipeline in divisors(workload.processes):
        if pipeline > workload.shape.layers:
            return
        for context in divisors(workload.processes // pipeline):
            rest = workload.processes // pipeline // context
            for tensor in filter(workload.tensor_fits, divisors(rest)):
                yield Mesh(
                    pipeline=pipeline, dataReplicate=rest // tensor, context=context, tensor=tensor
                )


def family_members(family: Mesh) -> Iterator[Mesh]:
    """Yield a family's mesh and those that shard its copies, in the order of preference."""
    copies = family.dataReplicate
    yield family
    for shards in (copies, *divisors(copies)[1:-1]) if copies > 1 else ():
        yield replace(family, dataReplicate=copies // shards, dataShard=shards)


def why_later(mesh: Mesh, chosen: Mesh) -> str:
    """Return why `mesh`, which can be had too, comes after the chosen one."""
    for axis in ("pipeline", "context", "tensor"):
        if getattr(mesh, axis) > getattr(chosen, axis):
            return f"would do, but {_COST[axis]}, and {chosen} does without"
    is_hybrid = mesh.dataReplicate > 1 and mesh.dataShard > 1
    return f"would do, but {_HYBRID_COST if is_hybrid else _SHARDED_COST}"

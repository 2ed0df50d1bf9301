"""Which shards of a run's state a process of a mesh holds, copies counted as one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelscaling.mesh import Mesh


def place_in_copy(mesh: Mesh, rank: int) -> tuple[Mesh, int]:
    """Return the mesh of a single copy of the state, and the rank there that holds the same shards
    as `rank` does on `mesh`.
    """
    single = replace(mesh, dataReplicate=1)
    return single, single.rank({**mesh.coordinates(rank), "dataReplicate": 0})

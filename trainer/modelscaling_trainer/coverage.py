"""Which shards of a run's state some processes of a mesh hold, copies counted once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelscaling.mesh import Mesh


def place_in_copy(mesh: Mesh, rank: int) -> tuple[Mesh, int]:
    """Return the mesh of a single copy of the state, and the rank there that holds the same shards
    as `rank` does on `mesh`.
    """
    single = replace(mesh, dataReplicate=1)
    return single, single.rank({**mesh.coordinates(rank), "dataReplicate": 0})


def covers(mesh: Mesh, ranks: Iterable[int]) -> bool:
    """Whether these ranks hold every shard: of each a copy is enough."""
    places = {place_in_copy(mesh, rank)[1] for rank in ranks}
    return len(places) == mesh.size // mesh.dataReplicate

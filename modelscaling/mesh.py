"""The device mesh as data: how many processes each axis of parallelism has, and who sits where.

One frozen value, used by the API's checks, the operator, the trainer and the command line alike.
Axes are ordered from the outermost to the innermost; ranks count the innermost axis first, so
that processes that talk most (tensor) are neighbours in a pod.
"""

# ruff: noqa: N815 - the names are the spec's, here and in every message

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

AXES = ("pipeline", "dataReplicate", "dataShard", "context", "tensor")
"""The axes of a mesh, outermost first: the less an axis talks, the further out it is."""

_SHORT = {
    "pipeline": "pp",
    "dataReplicate": "dp",
    "dataShard": "fsdp",
    "context": "cp",
    "tensor": "tp",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """Processes along each axis; every axis is at least 1."""

    pipeline: int = 1
    """Parts that the layers are cut into, one after the other."""
    dataReplicate: int = 1
    """Copies of the model, each on its own part of the batch (DDP)."""
    dataShard: int = 1
    """Parts that a copy's weights, gradients and moments are cut into; each also has its own part
    of the batch (FSDP)."""
    context: int = 1
    """Parts that each sample is cut into along its tokens."""
    tensor: int = 1
    """Parts that each matrix product is cut into."""
    stagesPerProcess: int = 1
    """Pipeline stages in each process: 1 is the schedule 1F1B, more interleaves them. Not an axis:
    it takes no processes."""

    def __post_init__(self) -> None:
        """Refuse what no processes can be laid out on."""
        for axis, size in self.sizes().items():
            if size < 1:
                raise ValueError(f"mesh axis {axis}={size} must be at least 1")
        if self.stagesPerProcess < 1 or (self.stagesPerProcess > 1 and self.pipeline == 1):
            raise ValueError(
                f"stagesPerProcess={self.stagesPerProcess} must be 1 with pipeline={self.pipeline}"
            )

    def sizes(self) -> Mapping[str, int]:
        """Return every axis' size, outermost first."""
        return {axis: getattr(self, axis) for axis in AXES}

    @property
    def size(self) -> int:
        """The number of processes."""
        return prod(self.sizes().values())

    @property
    def data_parallel(self) -> int:
        """The number of parts that the global batch is cut into."""
        return self.dataReplicate * self.dataShard

    @property
    def weight_shards(self) -> int:
        """The number of parts that fully-sharded weights are cut into: processes that share a
        sample's context must sum their gradients anyway, so they share the weights too.
        """
        return self.dataShard * self.context

    @property
    def is_sharded(self) -> bool:
        """Whether processes hold parts of a weight, rather than whole ones."""
        return self.weight_shards * self.tensor > 1

    @property
    def stages(self) -> int:
        """The number of pipeline stages over all processes."""
        return self.pipeline * self.stagesPerProcess

    def coordinates(self, rank: int) -> Mapping[str, int]:
        """Return where `rank` sits on each axis."""
        if not 0 <= rank < self.size:
            raise ValueError(f"rank={rank} is not in a mesh of {self.size} processes")
        coordinates: dict[str, int] = {}
        for axis, size in reversed(list(self.sizes().items())):
            rank, coordinates[axis] = divmod(rank, size)
        return dict(reversed(coordinates.items()))

    def rank(self, coordinates: Mapping[str, int]) -> int:
        """Return the rank at `coordinates`; the inverse of `coordinates()`."""
        rank = 0
        for axis, size in self.sizes().items():
            rank = rank * size + coordinates[axis]
        return rank

    def data_rank(self, rank: int) -> int:
        """Return which part of the global batch is `rank`'s, from 0 to data_parallel - 1."""
        place = self.coordinates(rank)
        return place["dataReplicate"] * self.dataShard + place["dataShard"]

    def __str__(self) -> str:
        """Return the axes above 1 in short, such as `dp4` or `pp2×fsdp2`; a single process is
        `single`, and interleaved stages are `pp2(×2)`.
        """
        parts = [f"{_SHORT[axis]}{size}" for axis, size in self.sizes().items() if size > 1]
        if self.stagesPerProcess > 1:
            parts[0] += f"(×{self.stagesPerProcess})"
        return "×".join(parts) or "single"

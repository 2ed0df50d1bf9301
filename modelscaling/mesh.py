"""The device mesh as data: how many processes each axis of parallelism has, and who sits where.

One frozen value, used by the API's checks, the operator, the trainer and the command line alike.
Axes are ordered from the outermost to the innermost; ranks count the innermost axis first, so
that processes that talk most (tensor) are neighbours in a pod.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """Processes along each axis, outermost first; every axis is at least 1."""

    dataReplicate: int = 1  # noqa: N815 - the names are the spec's, here and in every message
    """Copies of the model, each on its own part of the batch (DDP)."""

    def __post_init__(self) -> None:
        """Refuse an axis below 1."""
        for axis, size in self.sizes().items():
            if size < 1:
                raise ValueError(f"mesh axis {axis}={size} must be at least 1")

    def sizes(self) -> Mapping[str, int]:
        """Return every axis' size, outermost first."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def size(self) -> int:
        """The number of processes."""
        return prod(self.sizes().values())

    @property
    def data_parallel(self) -> int:
        """The number of parts that the global batch is cut into."""
        return self.dataReplicate

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

    def __str__(self) -> str:
        """Return the axes above 1 in short, such as `dp4`; a single process is `single`."""
        parts = [f"{_SHORT[axis]}{size}" for axis, size in self.sizes().items() if size > 1]
        return "×".join(parts) or "single"


_SHORT = {"dataReplicate": "dp"}

"""A process' place in a group: who it is, on which mesh, and where the group meets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelscaling.mesh import Mesh


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One process' place in one group."""

    generation: int
    """The number of the decision that made the group; groups with different numbers never mix."""
    mesh: Mesh
    rank: int
    """Below the mesh's size; from there on a process that only hands its state over."""
    local_rank: int
    """Which of its pod's processes, and so which device."""
    store_host: str
    """Where rank 0 hosts the group's TCP store."""
    store_port: int | None
    """None for rank 0, which binds a free port and tells it."""
    attempt: int = 1
    """How many times this group has been formed; attempts never mix either."""
    leavers: int = 0
    """How many processes come only to hand their state over."""
    checkpoint_step: int | None = None
    """The newest checkpoint that the run is known to have."""

    def __post_init__(self) -> None:
        """Refuse a place that the mesh does not have, and a store that nobody can find."""
        if not 0 <= self.rank < self.size:
            raise ValueError(
                f"rank={self.rank} is not in a mesh of {self.mesh.size} processes with "
                f"{self.leavers} that leave"
            )
        if (self.store_port is None) != (self.rank == 0):
            raise ValueError(
                f"store_port={self.store_port} at rank {self.rank}: rank 0 hosts the store and "
                f"takes None, all others need its port"
            )

    @property
    def size(self) -> int:
        """The number of processes that meet: those of the mesh, and those that leave."""
        return self.mesh.size + self.leavers

    @property
    def is_leaver(self) -> bool:
        """Whether this process only hands its state over."""
        return self.rank >= self.mesh.size

    @property
    def data_rank(self) -> int:
        """Which part of each global batch is this process'."""
        return self.mesh.data_rank(self.rank)

    @property
    def counts_loss(self) -> bool:
        """Whether the loss that this process sees is nobody else's: on the last pipeline stage,
        and once among those that share its products.
        """
        place = self.mesh.coordinates(self.rank)
        return place["pipeline"] == self.mesh.pipeline - 1 and place["tensor"] == 0

    @property
    def counts_samples(self) -> bool:
        """Whether this process speaks for the samples that several compute together."""
        place = self.mesh.coordinates(self.rank)
        return place["pipeline"] == place["context"] == place["tensor"] == 0

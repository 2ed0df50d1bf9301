"""Where a new group takes its state from: the decision, as a pure function of what its ranks have.

The highest step that is whole wins: where a peer was lost while the others agreed on a step, some
may have taken it and some not. At the same step memory wins over disk: it is as new and moves
faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelscaling_trainer.state import NOTHING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from modelscaling.mesh import Mesh


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What one rank has."""

    memory_step: int = NOTHING
    memory_digest: str | None = None
    """The sample digest of the state in memory."""
    mesh: Mesh | None = None
    """What the state in memory is laid out on; None where there is none."""
    rank: int = 0
    """The rank that it is laid out for."""
    checkpoint_step: int = NOTHING
    """The newest checkpoint that it sees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """All ranks hold their shards of the same state already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Some ranks' memories hold the whole state, laid out on another mesh or for other ranks."""

    mesh: Mesh
    holders: Mapping[int, int]
    """The ranks that hold it, with the rank that each had on `mesh`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """All ranks load a checkpoint."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Initialise:
    """Nobody has anything: the run begins."""


def settle(holdings: list[Holding], mesh: Mesh) -> Keep | Move | Load | Initialise:
    """Return where the state of a group on `mesh` comes from; the same on every rank."""
    checkpoint_step = max(holding.checkpoint_step for holding in holdings)
    memory_steps = {holding.memory_step for holding in holdings} - {NOTHING}
    for step in sorted(memory_steps, reverse=True):
        if step >= checkpoint_step and (move := _whole(holdings, step)):
            own_places = {rank: rank for rank in range(mesh.size)}
            return Keep() if move.mesh == mesh and move.holders == own_places else move
    return Initialise() if checkpoint_step == NOTHING else Load(step=checkpoint_step)


def _whole(holdings: list[Holding], step: int) -> Move | None:
    """Return who holds the whole state of a step, or None where parts of it are lost."""
    states: dict[tuple[str | None, Mesh], dict[int, int]] = {}
    for rank, holding in enumerate(holdings):
        if holding.memory_step == step and holding.mesh is not None:
            states.setdefault((holding.memory_digest, holding.mesh), {})[rank] = holding.rank
    for (_, mesh), holders in states.items():
        if _covers(mesh, holders.values()):
            return Move(mesh=mesh, holders=holders)
    return None


def _covers(mesh: Mesh, ranks: Collection[int]) -> bool:
    """Whether these ranks hold every shard: of each a copy is enough."""
    places = {
        tuple(at for axis, at in mesh.coordinates(rank).items() if axis != "dataReplicate")
        for rank in ranks
    }
    return len(places) == mesh.size // mesh.dataReplicate

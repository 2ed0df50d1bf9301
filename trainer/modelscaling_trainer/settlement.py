"""Where a new group takes its state from: the decision, as a pure function of what its ranks have.

The highest step that is whole wins: where a peer was lost while the others agreed on a step, some
may have taken it and some not. At the same step memory wins over disk: it is as new and moves
faster. What a rank has in memory is the part that it trains, or trained last, and snapshots of its
own part and of another rank's (snapshots.py); a state is whole where all of these together are.

A state that has just grown comes after all others of its step: whoever takes the one before grows
it again, and looks again whether that may stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelscaling_trainer.state import NOTHING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from modelscaling.growth.trained_model import TrainedModel
    from modelscaling.mesh import Mesh


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A part of a state that one rank has in memory."""

    step: int
    digest: str
    """The sample digest of the state."""
    model: TrainedModel
    mesh: Mesh
    """What a single copy of the state is laid out on: copies are one as good as the other."""
    rank: int
    """The rank of that mesh whose part it is."""
    is_snapshot: bool = False
    """Whether it is a copy that was put by, and not what is trained."""

    @property
    def is_untried(self) -> bool:
        """Whether its model has done no step since it grew."""
        ancestors = self.model.lineage.ancestors
        return bool(ancestors) and ancestors[-1].step == self.step


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What one rank has."""

    held: tuple[Held, ...] = ()
    checkpoint_step: int = NOTHING
    """The newest checkpoint that it sees."""
    checkpoint_model: TrainedModel | None = None
    """What that is of; None without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Some ranks' memories hold the whole state; all are filled from there."""

    step: int
    digest: str
    model: TrainedModel
    mesh: Mesh
    holders: Mapping[int, tuple[int, ...]]
    """The ranks that hold it, each with the ranks of `mesh` whose parts it has."""
    needs_snapshots: bool = False
    """Whether snapshots are among what is given; else all of it was being trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """All ranks load a checkpoint."""

    step: int
    model: TrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Initialise:
    """Nobody has anything: the run begins."""


def settle(holdings: Sequence[Holding]) -> Move | Load | Initialise:
    """Return where the state of a group comes from; the same on every rank."""
    newest = max(holdings, key=lambda holding: holding.checkpoint_step)
    steps = {held.step for holding in holdings for held in holding.held}
    for step in sorted(steps, reverse=True):
        if step < newest.checkpoint_step:
            break
        if move := next(_whole(holdings, step, is_untried=False), None):
            return move
        if step > newest.checkpoint_step and (
            move := next(_whole(holdings, step, is_untried=True), None)
        ):
            return move
    if newest.checkpoint_model is None:
        return Initialise()
    return Load(step=newest.checkpoint_step, model=newest.checkpoint_model)


def outlives_leavers(
    decision: Move | Load | Initialise, holdings: Sequence[Holding], *, ranks: int
) -> bool:
    """Whether the state that is taken is still whole when all but the first `ranks` have left, and
    nothing newer has replaced it.
    """
    if not isinstance(decision, Move):
        return isinstance(decision, Load)
    saved = (decision.step, decision.model)
    if any((one.checkpoint_step, one.checkpoint_model) == saved for one in holdings):
        return True
    staying = (places for rank, places in decision.holders.items() if rank < ranks)
    return len({place for places in staying for place in places}) == decision.mesh.size


def _whole(holdings: Sequence[Holding], step: int, *, is_untried: bool) -> Iterator[Move]:
    """Yield each way to have the whole state of a step, those without snapshots first; states of a
    model that has done no step since it grew, or all others.
    """
    for needs_snapshots in (False, True):
        states: dict[tuple[str, TrainedModel, Mesh], dict[int, list[int]]] = {}
        for rank, holding in enumerate(holdings):
            for held in sorted(holding.held, key=lambda held: held.is_snapshot):
                is_wanted = held.step == step and held.is_untried is is_untried
                if is_wanted and held.is_snapshot <= needs_snapshots:
                    holders = states.setdefault((held.digest, held.model, held.mesh), {})
                    holders.setdefault(rank, []).append(held.rank)
        for (digest, model, mesh), holders in states.items():
            if len({place for places in holders.values() for place in places}) == mesh.size:
                yield Move(
                    step=step,
                    digest=digest,
                    model=model,
                    mesh=mesh,
                    holders={rank: tuple(dict.fromkeys(held)) for rank, held in holders.items()},
                    needs_snapshots=needs_snapshots,
                )

"""Copies of parts of the state in the host's memory, for processes that are lost with theirs.

At a step boundary all ranks copy their part aside, send it to the rank that keeps it, and receive
that of the rank that they keep. The copies before stay until the next time: only then it is certain
that all ranks have these.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from modelscaling.layout import layout, trained_weights
from modelscaling_trainer.copies import place_in_copy
from modelscaling_trainer.optimizer import MOMENTS
from modelscaling_trainer.process_group import communication
from modelscaling_trainer.shard import Shard
from modelscaling_trainer.state import MODEL, StatePart

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelscaling.growth.trained_model import TrainedModel
    from modelscaling.layout import Piece
    from modelscaling.mesh import Mesh
    from modelscaling_trainer.snapshot_plan import Partners
    from modelscaling_trainer.state import Counters, TrainingState


_PAIRS = 2


class Snapshots:
    """Those that this process keeps; they outlive its groups."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        self._whole: list[_Pair] = []
        self._unfinished: _Pair | None = None
        self.seconds = 0.0
        """How long the last exchange took, without taking memory for the first time."""

    def parts(self) -> list[StatePart]:
        """Return all that are whole, the newest first."""
        return [part for pair in reversed(self._whole) for part in pair.parts()]

    def bytes_needed(self, state: TrainingState, partners: Partners) -> int:
        """Return the memory for all that is kept in a place of a group, without what is taken by
        now.
        """
        ranks = (state.part.rank, partners.ward)
        elements = sum(
            piece.region.elements for rank in ranks for piece in _pieces(state, rank).values()
        )
        pairs = [*self._whole, *([self._unfinished] if self._unfinished else [])]
        taken = sum(pair.bytes for pair in pairs)
        return _PAIRS * elements * _any_tensor(state).element_size() - taken

    def take(self, state: TrainingState, partners: Partners, members: dist.ProcessGroup) -> None:
        """Copy this rank's part and exchange it, on all ranks of the group.

        Raises:
            GroupLostError: a peer is gone; the snapshots before are whole.
        """
        pair = self._room(state, partners)
        self._unfinished = pair
        started = time.monotonic()
        pair.fill(state, partners, members)
        self.seconds = time.monotonic() - started
        self._unfinished = None
        self._whole.append(pair)

    def clear(self) -> None:
        """Give the memory back: the group can do without."""
        self._whole, self._unfinished = [], None

    def _room(self, state: TrainingState, partners: Partners) -> _Pair:
        """Return memory for a pair: that of one that was not finished, of the older one, or new."""
        old, self._unfinished = self._unfinished, None
        if old is None and len(self._whole) == _PAIRS:
            old = self._whole.pop(0)
        if old is not None and old.fits(state, partners):
            return old
        del old  # before more is taken
        return _Pair(state, partners)


class _Pair:
    """The copies of one step: of this rank's own part, and of another rank's."""

    def __init__(self, state: TrainingState, partners: Partners) -> None:
        self._place = _place(state, partners)
        self._model = state.model
        self._own = _Copy(state, state.part.rank)
        self._other = _Copy(state, partners.ward)
        self._counters: Counters | None = None

    @property
    def bytes(self) -> int:
        """The memory that it takes."""
        return self._own.memory.nbytes + self._other.memory.nbytes

    def fits(self, state: TrainingState, partners: Partners) -> bool:
        """Whether it has the memory that is needed in this place of a group."""
        return self._place == _place(state, partners)

    def fill(self, state: TrainingState, partners: Partners, members: dist.ProcessGroup) -> None:
        """Copy and exchange the parts of the state."""
        self._counters = None
        self._own.take(state.shards())
        with communication("exchanging snapshots"):
            works = dist.batch_isend_irecv(
                [
                    dist.P2POp(dist.isend, self._own.memory, partners.keeper, members),
                    dist.P2POp(dist.irecv, self._other.memory, partners.ward, members),
                ]
            )
            for work in works:
                work.wait()
        self._counters = state.counters

    def parts(self) -> list[StatePart]:
        """Return both as parts of the state."""
        assert self._counters is not None
        return [
            StatePart(
                counters=self._counters,
                model=self._model,
                mesh=copy.mesh,
                rank=copy.rank,
                shards=copy.shards,
                is_snapshot=True,
            )
            for copy in (self._own, self._other)
        ]


class _Copy:
    """Memory for one rank's part, in one block that can be sent as it is."""

    def __init__(self, state: TrainingState, rank: int) -> None:
        self.mesh, self.rank = place_in_copy(state.part.mesh, rank)
        pieces = _pieces(state, rank)
        sizes = [piece.region.elements for piece in pieces.values()]
        like = _any_tensor(state)
        self.memory = torch.empty(sum(sizes), dtype=like.dtype, pin_memory=like.is_cuda)
        self.memory.zero_()  # touching new pages takes several times longer than copying
        self.shards = {
            name: Shard(block.view(piece.region.size), piece)
            for (name, piece), block in zip(
                pieces.items(), torch.split(self.memory, sizes), strict=True
            )
        }

    def take(self, shards: Mapping[str, Shard]) -> None:
        """Copy the part that a state has."""
        for name, shard in self.shards.items():
            shard.tensor.copy_(shards[name].tensor)


def _pieces(state: TrainingState, rank: int) -> dict[str, Piece]:
    """Return what a rank has of the tensors of a state, by their names."""
    pieces = layout(state.part.shape, state.part.mesh, rank)
    trained = {*trained_weights(state.part.shape)}
    return {
        f"{kind}.{name}": piece
        for kind in (MODEL, *MOMENTS)
        for name, piece in pieces.items()
        if kind == MODEL or name in trained
    }


def _any_tensor(state: TrainingState) -> torch.Tensor:
    """Return one of its tensors, which are all of one type and on one device."""
    return next(iter(state.shards().values())).tensor


def _place(state: TrainingState, partners: Partners) -> tuple[TrainedModel, Mesh, int, int]:
    return state.model, state.part.mesh, state.part.rank, partners.ward

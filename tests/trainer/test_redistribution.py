"""Who sends what to whom, carried out for all ranks in one process, and by real ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscaling.layout import Region, layout, weights
from modelscaling.mesh import AXES, Mesh
from modelscaling_trainer.redistribution import Transfer, move, transfers
from modelscaling_trainer.shard import Shard
from tests.examples import examples
from tests.shared.workloads import make_shape, shapes
from tests.trainer.ranks import on_every_rank

if TYPE_CHECKING:
    from pathlib import Path

    from modelscaling.layout import Piece
    from modelscaling.shape import ModelShape


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of mesh, and who of the new group holds what of the old one."""

    shape: ModelShape
    before: Mesh
    holders: dict[int, tuple[int, ...]]
    after: Mesh

    def held(self) -> dict[int, dict[int, dict[str, Piece]]]:
        """Return what each holder has, by the rank before that had it."""
        return {
            rank: {place: layout(self.shape, self.before, place) for place in places}
            for rank, places in self.holders.items()
        }

    def transfers(self) -> list[Transfer]:
        return list(
            transfers(self.shape, before=self.before, holders=self.holders, after=self.after)
        )


@st.composite
def small_meshes(draw: st.DrawFn) -> Mesh:
    axes = draw(st.lists(st.sampled_from(AXES), max_size=2, unique=True))
    sizes = {axis: draw(st.integers(2, 3)) for axis in axes}
    laps = draw(st.integers(1, 2)) if "pipeline" in axes else 1
    return Mesh(**sizes, stagesPerProcess=laps)


@st.composite
def changes(draw: st.DrawFn) -> Change:
    before, after = draw(small_meshes()), draw(small_meshes())
    shape = draw(shapes())
    shape = replace(shape, layers=max(shape.layers, before.stages, after.stages))
    copies: dict[tuple[int, ...], list[int]] = {}
    for rank in range(before.size):
        place = before.coordinates(rank)
        key = tuple(at for axis, at in place.items() if axis != "dataReplicate")
        copies.setdefault(key, []).append(rank)
    survivors = [
        rank
        for ranks in copies.values()
        for rank in draw(st.lists(st.sampled_from(ranks), min_size=1, unique=True))
    ]
    # Some hold their own part, some others' as well, some nothing, and some of them leave.
    size = max(after.size, draw(st.integers(1, len(survivors))))
    holders: dict[int, tuple[int, ...]] = {}
    for survivor in draw(st.permutations(survivors)):
        for rank in draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=2, unique=True)):
            holders[rank] = (*holders.get(rank, ()), survivor)
    return Change(shape=shape, before=before, holders=holders, after=after)


@settings(deadline=None, max_examples=examples(30))
@given(change=changes())
def test_every_element_of_every_new_shard_is_filled_once_with_its_own_value(
    change: Change,
) -> None:
    whole = {
        name: torch.arange(1, torch.Size(size).numel() + 1).view(size)
        for name, size in weights(change.shape).items()
    }
    held = change.held()
    wanted = [layout(change.shape, change.after, rank) for rank in range(change.after.size)]
    filled = [
        {name: torch.zeros(piece.region.size, dtype=torch.int64) for name, piece in pieces.items()}
        for pieces in wanted
    ]
    for transfer in change.transfers():
        name, block = transfer.weight, transfer.region
        has = held[transfer.source][transfer.place][name].region
        new = filled[transfer.target][name][block.within(wanted[transfer.target][name].region)]
        # Added and not set: what is filled twice has a value that the whole has not.
        new += _part(whole[name], has)[block.within(has)]

    for pieces, tensors in zip(wanted, filled, strict=True):
        for name, tensor in tensors.items():
            assert torch.equal(_part(whole[name], pieces[name].region), tensor), name


@settings(deadline=None, max_examples=examples(30))
@given(change=changes())
def test_a_rank_keeps_what_it_has(change: Change) -> None:
    held = change.held()
    for transfer in change.transfers():
        has_it = any(
            piece.region.intersect(transfer.region) == transfer.region
            for part in held.get(transfer.target, {}).values()
            if (piece := part.get(transfer.weight))
        )
        assert not has_it or transfer.source == transfer.target


@settings(deadline=None)
@given(
    copies=st.integers(1, 5),
    newcomers=st.integers(1, 8),
    data=st.data(),
)
def test_copies_share_the_work_of_filling_newcomers(
    copies: int, newcomers: int, data: st.DataObject
) -> None:
    after = Mesh(dataReplicate=copies + newcomers)
    places = data.draw(st.permutations(range(after.size)))[:copies]
    shape = make_shape()
    given_elements = Counter(dict.fromkeys(places, 0))
    plan = transfers(
        shape,
        before=Mesh(dataReplicate=copies),
        holders={place: (rank,) for rank, place in enumerate(places)},
        after=after,
    )
    for transfer in plan:
        if transfer.source != transfer.target:
            given_elements[transfer.source] += transfer.region.elements

    largest = max(torch.Size(size).numel() for size in weights(shape).values())
    assert max(given_elements.values()) - min(given_elements.values()) <= largest
    assert given_elements.total() == newcomers * shape.parameters()


def _part(whole: torch.Tensor, region: Region) -> torch.Tensor:
    return whole[region.within(Region((0,) * whole.ndim, tuple(whole.shape)))]


WIDE = make_shape(hidden_size=256, vocabulary_size=66_000)
"""Its table is larger than a message, and the other weights are not."""


@pytest.mark.process
@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(Mesh(), Mesh(dataReplicate=2), id="a newcomer gets a copy"),
        pytest.param(Mesh(dataShard=2), Mesh(tensor=2), id="rows become columns"),
    ],
)
def test_large_and_small_blocks_arrive_where_they_belong(
    before: Mesh, after: Mesh, tmp_path: Path
) -> None:
    differing = on_every_rank(_fill, 2, before, after, meeting=tmp_path / "meeting")

    assert differing == [[], []]


def _fill(rank: int, before: Mesh, after: Mesh) -> list[str]:
    """Fill a rank's new shards by the others' old ones; return the names of wrong tensors."""
    held = {place: (place,) for place in range(before.size)}
    plan = transfers(WIDE, before=before, holders=held, after=after)
    new = _shards(after, rank)
    expected = {name: shard.tensor.clone() for name, shard in new.items()}
    for shard in new.values():
        shard.tensor.zero_()
    move(
        plan,
        rank=rank,
        old={rank: _shards(before, rank)} if rank in held else {},
        new=new,
        kinds=lambda _: ("model", "exp_avg"),
        through=torch.device("cpu"),
    )
    return [name for name, shard in new.items() if not torch.equal(expected[name], shard.tensor)]


def _shards(mesh: Mesh, rank: int) -> dict[str, Shard]:
    """Return a rank's shards of tensors that each say their kind and their elements' places."""
    shards = {}
    for name, piece in layout(WIDE, mesh, rank).items():
        for base, kind in enumerate(("model", "exp_avg")):
            whole = torch.arange(torch.Size(piece.shape).numel(), dtype=torch.float32)
            values = _part(whole.view(piece.shape) + base / 2, piece.region).clone()
            shards[f"{kind}.{name}"] = Shard(values, piece)
    return shards

"""Moving a run's state in memory from the mesh it was trained on to another.

Who sends what to whom follows from the two layouts alone, so that all ranks know it without asking.
What one rank sends another goes in few messages of many blocks: a model has hundreds of weights,
and a message takes its time however small it is.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from modelscaling.layout import Region, layout
from modelscaling_trainer.copies import place_in_copy
from modelscaling_trainer.process_group import communication

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from modelscaling.mesh import Mesh
    from modelscaling.shape import ModelShape
    from modelscaling_trainer.shard import Shard

    Shards = Mapping[str, Shard]
    """Of a state, named KIND.WEIGHT."""

_MESSAGE_ELEMENTS = 16 << 20
"""A message has no more, so that little memory is needed beside the shards."""
_ALONE_ELEMENTS = 64 << 10
"""A block of so many is not copied together with others, and not at all where it can go from
memory to memory."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """A block of a weight, and of all that is kept for it, that one rank gives to another."""

    weight: str
    region: Region
    source: int
    target: int
    place: int
    """The rank on the mesh before whose part the source gives it from."""


def transfers(
    shape: ModelShape,
    *,
    before: Mesh,
    holders: Mapping[int, Collection[int]],
    after: Mesh,
    needed: Callable[[int], Mapping[str, Region]] | None = None,
) -> Iterator[Transfer]:
    """Yield what moves, in an order that is the same on all ranks.

    `needed` says which region of each weight a rank of the mesh `after` is to be given: what it has
    of the same model there, unless said otherwise.

    `holders` are the ranks that hold the state, each with the ranks of the mesh `before` whose
    parts it has, its favourite first; together they hold all of it. A rank that has a block keeps
    its own; of several that could give a block, the one that has given least so far does.
    """
    regions = _regions(shape)
    held = _blocks_held(regions, before, holders)
    given: Counter[int] = Counter()
    for target in range(after.size):
        wanted = needed(target) if needed else regions(*place_in_copy(after, target))
        for weight, region in wanted.items():
            for block, sources in held[weight].overlaps(region):
                source = target
                if target not in sources:
                    source = min(sources, key=lambda rank: given[rank])
                    given[source] += block.elements
                yield Transfer(weight, block, source, target, sources[source])


def _regions(shape: ModelShape) -> Callable[[Mesh, int], Mapping[str, Region]]:
    """Return a function that says which region of each weight a rank of a mesh has."""

    @cache
    def regions(mesh: Mesh, rank: int) -> Mapping[str, Region]:
        return {name: piece.region for name, piece in layout(shape, mesh, rank).items()}

    return regions


class _Blocks:
    """The blocks that a weight is held in, each with who holds it and in whose part."""

    def __init__(self, holders: Mapping[Region, dict[int, int]]) -> None:
        self._regions = sorted(
            (region for region in holders if region.elements), key=lambda region: region.offset
        )
        self._holders = holders
        # A mesh cuts the first dimension alike everywhere, so blocks' ends are in order as well.
        self._starts = [region.offset[0] for region in self._regions]
        self._ends = [region.offset[0] + region.size[0] for region in self._regions]

    def overlaps(self, wanted: Region) -> Iterator[tuple[Region, dict[int, int]]]:
        """Yield what of the blocks is in a region, with its holders."""
        first = bisect_right(self._ends, wanted.offset[0])
        last = bisect_left(self._starts, wanted.offset[0] + wanted.size[0])
        for region in self._regions[first:last]:
            block = region.intersect(wanted)
            if block is not None:
                yield block, self._holders[region]


def _blocks_held(
    regions: Callable[[Mesh, int], Mapping[str, Region]],
    mesh: Mesh,
    holders: Mapping[int, Collection[int]],
) -> dict[str, _Blocks]:
    held: dict[str, dict[Region, dict[int, int]]] = defaultdict(dict)
    for rank, places in sorted(holders.items()):
        for place in places:
            for weight, region in regions(mesh, place).items():
                held[weight].setdefault(region, {}).setdefault(rank, place)
    return {weight: _Blocks(blocks) for weight, blocks in held.items()}


def move(
    plan: Iterable[Transfer],
    *,
    rank: int,
    old: Mapping[int, Shards],
    new: Shards,
    kinds: Callable[[str], Sequence[str]],
    through: torch.device,
) -> None:
    """Carry the transfers out, on all ranks: fill `new` from the `old` shards of all ranks.

    `old` are those of each part that this rank gives from, by the part's rank on the mesh before.
    `kinds` says what a state has of a weight. Messages are made on the device `through`: that of
    the shards, or the host. All of a state is of one type.

    Raises:
        GroupLostError: a peer is gone.
    """
    outgoing: dict[int, list[_Block]] = defaultdict(list)
    incoming: dict[int, list[_Block]] = defaultdict(list)
    for transfer in plan:
        if transfer.source == transfer.target == rank:
            _keep(transfer, old, new, kinds(transfer.weight))
        elif transfer.source == rank:
            outgoing[transfer.target] += _blocks(transfer, kinds(transfer.weight))
        elif transfer.target == rank:
            incoming[transfer.source] += _blocks(transfer, kinds(transfer.weight))
    sends = {peer: _messages(blocks) for peer, blocks in outgoing.items()}
    receives = {peer: _messages(blocks) for peer, blocks in incoming.items()}
    for number in range(max(map(len, [*sends.values(), *receives.values()]), default=0)):
        _exchange(
            {peer: cut[number] for peer, cut in sends.items() if number < len(cut)},
            {peer: cut[number] for peer, cut in receives.items() if number < len(cut)},
            old=old,
            new=new,
            through=through,
        )


@dataclass(frozen=True, slots=True)
class _Block:
    """A block of a tensor, on its way."""

    name: str
    """Of the tensor: KIND.WEIGHT."""
    region: Region
    place: int


def _blocks(transfer: Transfer, kinds: Sequence[str]) -> Iterator[_Block]:
    """Yield a transfer's blocks of all kinds, none larger than a message."""
    size = transfer.region.size
    rows = max(1, _MESSAGE_ELEMENTS * size[0] // transfer.region.elements)
    for kind in kinds:
        for start in range(0, size[0], rows):
            first, *others = transfer.region.offset
            part = Region((first + start, *others), (min(rows, size[0] - start), *size[1:]))
            yield _Block(f"{kind}.{transfer.weight}", part, transfer.place)


def _messages(blocks: Iterable[_Block]) -> list[list[_Block]]:
    """Return the blocks from one rank to another in messages; both ends cut alike."""
    messages: list[list[_Block]] = []
    room = 0
    for block in blocks:
        room -= block.region.elements
        if room < 0:
            messages.append([])
            room = _MESSAGE_ELEMENTS - block.region.elements
        messages[-1].append(block)
    return messages


def _keep(transfer: Transfer, old: Mapping[int, Shards], new: Shards, kinds: Sequence[str]) -> None:
    """Take over what this rank had itself."""
    for kind in kinds:
        name = f"{kind}.{transfer.weight}"
        before, after = old[transfer.place][name], new[name]
        if before.tensor.data_ptr() != after.tensor.data_ptr():
            _values(after, transfer.region).copy_(_values(before, transfer.region))


def _exchange(
    sends: Mapping[int, list[_Block]],
    receives: Mapping[int, list[_Block]],
    *,
    old: Mapping[int, Shards],
    new: Shards,
    through: torch.device,
) -> None:
    """Send and receive a message to and from each of these ranks."""
    operations: list[dist.P2POp] = []
    for peer, message in sends.items():
        for blocks in _tensors(message):
            values = [_values(old[block.place][block.name], block.region) for block in blocks]
            outgoing = values[0] if len(values) == 1 else torch.cat([v.flatten() for v in values])
            operations.append(dist.P2POp(dist.isend, outgoing.to(through).contiguous(), peer))
    received: list[tuple[list[torch.Tensor], torch.Tensor]] = []
    for peer, message in receives.items():
        for blocks in _tensors(message):
            values = [_values(new[block.name], block.region) for block in blocks]
            incoming = _room_for(values, through)
            received.append((values, incoming))
            operations.append(dist.P2POp(dist.irecv, incoming, peer))
    with communication("moving the state"):
        for work in dist.batch_isend_irecv(operations):
            work.wait()
    for values, incoming in received:
        _spread(incoming, values)


def _tensors(message: list[_Block]) -> list[list[_Block]]:
    """Return the blocks of a message by the tensor that they are sent in."""
    alone = [[block] for block in message if block.region.elements >= _ALONE_ELEMENTS]
    together = [block for block in message if block.region.elements < _ALONE_ELEMENTS]
    return [*alone, together] if together else alone


def _room_for(values: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Return what is received into: the memory that is to be filled, where that is possible."""
    first = values[0]
    if len(values) == 1 and first.is_contiguous() and first.device == device:
        return first
    size = sum(value.numel() for value in values)
    return torch.empty(size, dtype=first.dtype, device=device)


def _spread(incoming: torch.Tensor, values: list[torch.Tensor]) -> None:
    """Copy what was received to where it belongs, unless it is there."""
    if incoming is values[0]:
        return
    sizes = [value.numel() for value in values]
    for value, part in zip(values, torch.split(incoming, sizes), strict=True):
        value.copy_(part.view(value.shape))


def _values(shard: Shard, region: Region) -> torch.Tensor:
    return shard.tensor[region.within(shard.piece.region)]

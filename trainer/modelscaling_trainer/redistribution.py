"""Moving a run's state in memory from the mesh it was trained on to another.

Who sends what to whom follows from the two layouts alone, so that all ranks know it without asking.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from modelscaling.layout import layout
from modelscaling_trainer.process_group import communication

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from modelscaling.layout import Region
    from modelscaling.mesh import Mesh
    from modelscaling.shape import ModelShape
    from modelscaling_trainer.shard import Shard


@dataclass(frozen=True, slots=True)
class Transfer:
    """A block of a weight, and of all that is kept for it, that one rank gives to another."""

    weight: str
    region: Region
    source: int
    target: int


def transfers(
    shape: ModelShape, *, before: Mesh, holders: Mapping[int, int], after: Mesh
) -> Iterator[Transfer]:
    """Yield what moves, in an order that is the same on all ranks.

    `holders` are the ranks that hold the state, with the rank that each had on the mesh `before`;
    together they hold all of it. A rank that has a block keeps its own; of several that could give
    a block, the one that has given least so far does.
    """
    held: dict[str, dict[Region, list[int]]] = defaultdict(lambda: defaultdict(list))
    for rank, rank_before in sorted(holders.items()):
        for weight, piece in layout(shape, before, rank_before).items():
            held[weight][piece.region].append(rank)
    given: Counter[int] = Counter()
    for target in range(after.size):
        for weight, piece in layout(shape, after, target).items():
            for region, ranks in held[weight].items():
                block = region.intersect(piece.region)
                if block is None:
                    continue
                source = target
                if target not in ranks:
                    source = min(ranks, key=lambda rank: given[rank])
                    given[source] += block.elements
                yield Transfer(weight, block, source, target)


def move(
    plan: Iterator[Transfer],
    *,
    rank: int,
    old: Mapping[str, Shard] | None,
    new: Mapping[str, Shard],
    kinds: tuple[str, ...],
) -> None:
    """Carry the transfers out: fill `new` from the `old` shards of all ranks.

    Shards are named KIND.WEIGHT; a rank that holds nothing has no `old`. Blocks move one weight at
    a time, so that little memory is needed beside the shards.

    Raises:
        GroupLostError: a peer is gone.
    """
    by_weight: dict[str, list[Transfer]] = defaultdict(list)
    for transfer in plan:
        if rank in {transfer.source, transfer.target}:
            by_weight[transfer.weight].append(transfer)
    for weight in sorted(by_weight):
        for kind in kinds:
            name = f"{kind}.{weight}"
            _move_blocks(by_weight[weight], rank, (old or {}).get(name), new.get(name))


def _move_blocks(blocks: list[Transfer], rank: int, old: Shard | None, new: Shard | None) -> None:
    operations: list[dist.P2POp] = []
    received: list[tuple[Region, torch.Tensor]] = []
    for block in blocks:
        if block.source == block.target:
            assert old is not None
            assert new is not None
            if old.tensor.data_ptr() != new.tensor.data_ptr():
                _block(new, block.region).copy_(_block(old, block.region))
        elif block.source == rank:
            assert old is not None
            outgoing = _block(old, block.region).contiguous()
            operations.append(dist.P2POp(dist.isend, outgoing, block.target))
        else:
            assert new is not None
            incoming = torch.empty(
                block.region.size, dtype=new.tensor.dtype, device=new.tensor.device
            )
            received.append((block.region, incoming))
            operations.append(dist.P2POp(dist.irecv, incoming, block.source))
    if operations:
        with communication("moving the state"):
            for work in dist.batch_isend_irecv(operations):
                work.wait()
    for region, incoming in received:
        assert new is not None
        _block(new, region).copy_(incoming)


def _block(shard: Shard, region: Region) -> torch.Tensor:
    return shard.tensor[region.within(shard.piece.region)]

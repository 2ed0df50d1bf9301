"""Growing what a process holds of a state: the blocks of the old tensors that it needs, and its new
shards made from these.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from modelscaling.growth.tensor_growth import Kind
from modelscaling.layout import Piece
from modelscaling_trainer.growth.filling import fresh_values, grow_into
from modelscaling_trainer.shard import Shard

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelscaling.growth.step import Growth
    from modelscaling.layout import Region


def old_regions(growth: Growth, pieces: Mapping[str, Piece]) -> dict[str, Region]:
    """Return the block of each old weight that pieces of the grown ones are made from: one, around
    all that they need of it.
    """
    found: dict[str, Region] = {}
    for name, piece in pieces.items():
        # What a weight needs covers what its moments do.
        needed = growth[name].needed(piece.region, Kind.MODEL)
        if needed is not None:
            source = growth[name].source
            found[source] = found[source].around(needed) if source in found else needed
    return found


def old_shards(
    growth: Growth, pieces: Mapping[str, Piece], *, like: torch.Tensor
) -> dict[str, Shard]:
    """Return memory for these blocks and their moments, named as a state's shards are."""
    sizes = {tensor.source: tensor.before for tensor in growth.values()}
    return {
        f"{kind}.{name}": Shard(
            torch.empty(region.size, dtype=like.dtype, device=like.device),
            Piece(shape=sizes[name], region=region, copy=0, copies=1),
        )
        for kind in Kind
        for name, region in old_regions(growth, pieces).items()
    }


def grow_shards(
    new: Mapping[str, Shard], old: Mapping[str, Shard], growth: Growth, *, seed: int, layers: int
) -> None:
    """Fill a process' shards of the grown model, of so many layers, from those of the old one."""
    for full_name, target in new.items():
        kind, _, name = full_name.partition(".")
        source = old.get(f"{kind}.{growth[name].source}")
        grow_into(
            target,
            growth[name],
            Kind(kind),
            source=None if source is None else source.tensor,
            held=None if source is None else source.piece.region,
            fresh=partial(fresh_values, name, target, seed=seed, layers=layers),
        )

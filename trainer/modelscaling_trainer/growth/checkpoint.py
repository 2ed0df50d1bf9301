"""A checkpoint of a grown model from one of the old: some rows of a tensor at a time, made from
what they need of the old one, so that no model is in memory.
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch

from modelscaling.growth.tensor_growth import Kind
from modelscaling.layout import Piece, Region
from modelscaling_trainer.checkpoint.catalog import write_description
from modelscaling_trainer.checkpoint.directory import TEMPORARY, sync_directory
from modelscaling_trainer.checkpoint.index import index
from modelscaling_trainer.checkpoint.part import DTYPES, Block, in_file_order, write_blocks
from modelscaling_trainer.errors import CheckpointError
from modelscaling_trainer.growth.filling import fresh_values, grow_into
from modelscaling_trainer.row_blocks import row_blocks
from modelscaling_trainer.shard import Shard

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from modelscaling.growth.lineage import Lineage
    from modelscaling.growth.plan import GrowthPlan
    from modelscaling.growth.tensor_growth import TensorGrowth
    from modelscaling_trainer.checkpoint.catalog import Checkpoint

_PART = "part-00000.safetensors"


def write_grown(
    source: Checkpoint, plan: GrowthPlan, target: Path, *, lineage: Lineage, seed: int
) -> None:
    """Write the checkpoint that `source` grows to into an empty directory; `lineage` is that of the
    grown model.

    Raises:
        CheckpointError: the old one is damaged.
        OSError: the new one cannot be written.
    """
    growth = plan.growth()
    tensors = {(kind, name): tensor for kind in Kind for name, tensor in growth.items()}
    blocks = {
        _block(source, kind, name, tensor): (kind, name) for (kind, name), tensor in tensors.items()
    }
    ordered = in_file_order(list(blocks))

    def contents() -> Iterator[memoryview]:
        for block in ordered:
            kind, name = blocks[block]
            grow = partial(
                _grown, source, growth[name], kind, block, seed=seed, layers=plan.shape.layers
            )
            for region in row_blocks(block.shape):
                yield _bytes(grow(region))

    write_blocks(target / _PART, ordered, contents())
    write_description(
        target,
        counters=source.counters,
        shape=plan.shape,
        files=[_PART],
        tensors=index({_PART: ordered}),
        tokenizer=source.tokenizer,
        lineage=lineage,
    )


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Give a directory to write into that has the name `path` when all is written, and is gone when
    something goes wrong.

    Raises:
        OSError: it cannot be made, or something has taken the name meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    unfinished.mkdir()
    try:
        yield unfinished
        unfinished.rename(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    sync_directory(path.parent)


def _block(source: Checkpoint, kind: Kind, name: str, tensor: TensorGrowth) -> Block:
    stored = source.tensors.get(f"{kind}.{tensor.source}")
    if stored is None:
        raise CheckpointError(
            f"checkpoint {source.path} is damaged: it lacks the tensor {kind}.{tensor.source}"
        )
    return Block(
        name=f"{kind}.{name}",
        dtype=stored.dtype,
        shape=tensor.after,
        region=Region((0,) * len(tensor.after), tensor.after),
    )


def _grown(
    source: Checkpoint,
    tensor: TensorGrowth,
    kind: Kind,
    block: Block,
    region: Region,
    *,
    seed: int,
    layers: int,
) -> Tensor:
    """Return a region of a tensor of the grown model."""
    dtype = DTYPES[block.dtype]
    held = tensor.needed(region, kind)
    old = None
    if held is not None:
        old = torch.empty(held.size, dtype=dtype)
        piece = Piece(shape=tensor.before, region=held, copy=0, copies=1)
        source.load({f"{kind}.{tensor.source}": Shard(old, piece)})
    piece = Piece(shape=block.shape, region=region, copy=0, copies=1)
    target = Shard(torch.empty(region.size, dtype=dtype), piece)
    name = block.name.removeprefix(f"{kind}.")
    grow_into(
        target,
        tensor,
        kind,
        source=old,
        held=held,
        fresh=lambda: fresh_values(name, target, seed=seed, layers=layers),
    )
    return target.tensor


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data

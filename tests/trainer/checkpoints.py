"""Checkpoints for tests: a whole state, what each process of a mesh holds of it, and saving it
from all of them, each with a writer of its own as in as many processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelscaling.growth.lineage import NO_LINEAGE, Lineage
from modelscaling.growth.trained_model import TrainedModel
from modelscaling.layout import layout, weights
from modelscaling.mesh import Mesh
from modelscaling.shape import ModelShape
from modelscaling_trainer.checkpoint.writer import CheckpointWriter
from modelscaling_trainer.shard import Shard
from modelscaling_trainer.state import Counters

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from modelscaling.layout import Piece

PREFIXES = ("model", "exp_avg", "exp_avg_sq")
SINGLE = Mesh()


def make_shape(
    *, layers: int = 4, hidden_size: int = 20, vocabulary_size: int = 37, is_tied: bool = True
) -> ModelShape:
    """Return a small shape with dimensions that neither 3 nor 8 divides."""
    return ModelShape(
        layers=layers,
        hidden_size=hidden_size,
        heads=4,
        kv_heads=2,
        head_size=6,
        feed_forward_size=44,
        vocabulary_size=vocabulary_size,
        context_length=8,
        tied_embeddings=is_tied,
    )


SHAPE = make_shape()
MESHES = (
    SINGLE,
    Mesh(dataReplicate=4),
    Mesh(dataShard=3),
    Mesh(dataShard=2, tensor=2),
    Mesh(tensor=2),
    Mesh(tensor=4),
    Mesh(pipeline=2),
    Mesh(pipeline=2, stagesPerProcess=2),
    Mesh(context=2),
    Mesh(pipeline=2, dataShard=2),
    Mesh(dataReplicate=2, dataShard=2),
)


def make_state(shape: ModelShape = SHAPE, *, seed: int = 0) -> dict[str, Tensor]:
    """Return the weights and moments of a whole model, all different."""
    draw = torch.Generator().manual_seed(seed)
    return {
        f"{prefix}.{name}": torch.randn(size, generator=draw)
        for prefix in PREFIXES
        for name, size in weights(shape).items()
    }


def pieces(shape: ModelShape, mesh: Mesh, rank: int) -> dict[str, Piece]:
    """Return what a process holds of weights and moments."""
    held = layout(shape, mesh, rank)
    return {f"{prefix}.{name}": piece for prefix in PREFIXES for name, piece in held.items()}


def make_shards(
    state: Mapping[str, Tensor], mesh: Mesh, rank: int, *, shape: ModelShape = SHAPE
) -> dict[str, Shard]:
    """Return copies of what a process holds of a state."""
    return {
        name: Shard(state[name][_index(piece)].clone(), piece)
        for name, piece in pieces(shape, mesh, rank).items()
    }


def forget(shards: Mapping[str, Shard]) -> None:
    """Fill with what no state has."""
    for shard in shards.values():
        shard.tensor.fill_(-12345)


def differing(shards: Mapping[str, Shard], state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of shards that are not bitwise what they are to hold of a state."""
    return [
        name
        for name, shard in shards.items()
        if not torch.equal(shard.tensor, state[name][_index(shard.piece)])
    ]


def make_writer(
    directory: Path,
    *,
    keep: int = 9,
    generation: int = 1,
    token: str = "a",
    rank: int = 0,
    ranks: int = 1,
    parts_timeout_s: float = 30.0,
    shape: ModelShape = SHAPE,
    lineage: Lineage = NO_LINEAGE,
    keeps_best: bool = False,
    tokenizer: str | None = "byte",
) -> CheckpointWriter:
    """Return a process' writer in a group."""
    writer = CheckpointWriter(
        directory,
        keep=keep,
        tokenizer=tokenizer,
        keeps_best=keeps_best,
        parts_timeout_s=parts_timeout_s,
    )
    writer.begin_group(
        token,
        model=TrainedModel(shape=shape, lineage=lineage),
        generation=generation,
        rank=rank,
        ranks=ranks,
    )
    return writer


def save(
    directory: Path,
    state: Mapping[str, Tensor],
    *,
    mesh: Mesh = SINGLE,
    counters: Counters | None = None,
    shape: ModelShape = SHAPE,
    tokenizer: str | None = "byte",
) -> None:
    """Save a state from all processes of a mesh."""
    writers = [
        make_writer(directory, rank=rank, ranks=mesh.size, shape=shape, tokenizer=tokenizer)
        for rank in range(mesh.size)
    ]
    for rank, writer in enumerate(writers):
        writer.save(
            make_shards(state, mesh, rank, shape=shape),
            counters or Counters(step=1),
            learning_rate=1e-3,
        )
    for writer in writers:
        writer.wait()


def _index(piece: Piece) -> tuple[slice, ...]:
    return tuple(
        slice(start, start + length)
        for start, length in zip(piece.region.offset, piece.region.size, strict=True)
    )

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscaling.layout import Piece, Region
from modelscaling.mesh import Mesh
from modelscaling.shape import ModelShape
from modelscaling_trainer.checkpoint.share import LEAST_BYTES, MOST_BLOCKS, share
from tests.examples import examples
from tests.trainer.checkpoints import MESHES, SHAPE, make_shape, pieces

if TYPE_CHECKING:
    from torch import Tensor

SIZED = ModelShape(
    layers=12,
    hidden_size=768,
    heads=12,
    kv_heads=6,
    head_size=64,
    feed_forward_size=2048,
    vocabulary_size=32_000,
    context_length=1024,
    tied_embeddings=True,
)
"""102 M parameters, a quarter of them in one table."""


def count_writers(shape: ModelShape, mesh: Mesh, *, least_bytes: int) -> dict[str, Tensor]:
    """Return how many processes write each element."""
    writers: dict[str, Tensor] = {}
    for rank in range(mesh.size):
        for name, piece in pieces(shape, mesh, rank).items():
            count = writers.setdefault(name, torch.zeros(piece.shape, dtype=torch.int64))
            block = share(name, piece, element_bytes=4, least_bytes=least_bytes)
            if block is not None:
                count[block.within(Region((0,) * len(piece.shape), piece.shape))] += 1
    return writers


@pytest.mark.parametrize("least_bytes", [16, LEAST_BYTES], ids=["cut", "whole regions"])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_every_element_is_written_exactly_once(mesh: Mesh, least_bytes: int) -> None:
    writers = count_writers(SHAPE, mesh, least_bytes=least_bytes)

    assert all(bool((count == 1).all()) for count in writers.values())


@settings(max_examples=examples(40), deadline=None)
@given(
    pipeline=st.integers(1, 3),
    copies=st.integers(1, 3),
    shards=st.integers(1, 3),
    tensor=st.integers(1, 3),
    hidden_size=st.integers(1, 9),
    is_tied=st.booleans(),
    least_bytes=st.integers(1, 256),
)
def test_every_element_is_written_exactly_once_on_any_mesh(
    *,
    pipeline: int,
    copies: int,
    shards: int,
    tensor: int,
    hidden_size: int,
    is_tied: bool,
    least_bytes: int,
) -> None:
    mesh = Mesh(pipeline=pipeline, dataReplicate=copies, dataShard=shards, tensor=tensor)
    shape = make_shape(layers=2, hidden_size=hidden_size, vocabulary_size=5, is_tied=is_tied)
    writers = count_writers(shape, mesh, least_bytes=least_bytes)

    assert all(bool((count == 1).all()) for count in writers.values())


@pytest.mark.parametrize(
    "mesh",
    [
        Mesh(dataReplicate=2),
        Mesh(dataReplicate=3),
        Mesh(dataReplicate=16),
        Mesh(dataReplicate=2, tensor=2),
        Mesh(dataReplicate=2, dataShard=2),
    ],
    ids=str,
)
def test_the_work_is_spread_evenly_by_bytes(mesh: Mesh) -> None:
    written: dict[int, int] = defaultdict(int)
    for rank in range(mesh.size):
        for name, piece in pieces(SIZED, mesh, rank).items():
            block = share(name, piece, element_bytes=4)
            written[rank] += 4 * block.elements if block else 0
    even = 12 * SIZED.parameters() / mesh.size

    assert sum(written.values()) == 12 * SIZED.parameters()
    assert max(written.values()) <= 1.01 * even


def test_a_small_region_is_written_whole_and_different_ones_by_different_copies() -> None:
    def writer(name: str) -> int:
        held = [
            Piece(shape=(64,), region=Region((0,), (64,)), copy=copy, copies=4) for copy in range(4)
        ]
        blocks = [share(name, piece, element_bytes=4) for piece in held]
        assert [block for block in blocks if block] == [Region((0,), (64,))]
        return [block is not None for block in blocks].index(True)

    assert {writer(f"layers.{layer}.norm") for layer in range(32)} == {0, 1, 2, 3}


def test_thousands_of_copies_make_few_blocks() -> None:
    region = Region((0, 0), (5000, 5000))
    held = [
        Piece(shape=(5000, 5000), region=region, copy=copy, copies=4096) for copy in range(4096)
    ]
    blocks = [block for piece in held if (block := share("a", piece, element_bytes=4))]

    assert len(blocks) == MOST_BLOCKS
    assert sum(block.elements for block in blocks) == region.elements


def test_nobody_writes_an_empty_region() -> None:
    piece = Piece(shape=(2, 3), region=Region((2, 0), (0, 3)), copy=0, copies=1)

    assert share("a", piece, element_bytes=4) is None

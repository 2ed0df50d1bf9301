from __future__ import annotations

from itertools import product
from math import prod
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscaling.layout import (
    EMBEDDING,
    HEAD,
    Region,
    is_adapter,
    layout,
    process_stages,
    stage_layers,
    trained_weights,
    weights,
)
from modelscaling.mesh import Mesh
from tests.shared.workloads import make_shape, meshes, shapes

if TYPE_CHECKING:
    from modelscaling.shape import ModelShape


def _elements(region: Region) -> list[tuple[int, ...]]:
    return list(
        product(*(range(a, a + n) for a, n in zip(region.offset, region.size, strict=True)))
    )


@st.composite
def regions(draw: st.DrawFn) -> Region:
    offset = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    size = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    return Region(offset, size)


@given(shapes())
def test_the_weights_are_all_the_parameters_there_are(shape: ModelShape) -> None:
    sizes = {name: prod(size) for name, size in weights(shape).items()}
    adapters = sum(size for name, size in sizes.items() if is_adapter(name))

    assert sum(sizes.values()) - adapters == shape.parameters()
    assert adapters == shape.adapter_parameters()
    assert sum(sizes[name] for name in trained_weights(shape)) == (adapters or sum(sizes.values()))
    assert (HEAD in weights(shape)) is not shape.tied_embeddings


@settings(deadline=None)
@given(shapes(), meshes())
def test_all_ranks_together_cover_every_weight_exactly_as_often_as_it_has_copies(
    shape: ModelShape, mesh: Mesh
) -> None:
    held = [layout(shape, mesh, rank) for rank in range(mesh.size)]
    for name, size in weights(shape).items():
        pieces = [pieces[name] for pieces in held if name in pieces]
        (copies,) = {piece.copies for piece in pieces}
        assert {piece.shape for piece in pieces} == {size}
        assert {piece.copy for piece in pieces} == set(range(copies))
        for copy in range(copies):
            mine = [piece.region for piece in pieces if piece.copy == copy]
            assert sum(region.elements for region in mine) == prod(size)
            assert len({e for region in mine for e in _elements(region)}) == prod(size)


@settings(deadline=None)
@given(shapes(), meshes(), st.data())
def test_copies_of_a_weight_lie_on_equal_regions(
    shape: ModelShape, mesh: Mesh, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from([*weights(shape)]))
    held = [layout(shape, mesh, rank) for rank in range(mesh.size)]
    pieces = [pieces[name] for pieces in held if name in pieces]
    by_copy = [
        sorted((p.region.offset, p.region.size) for p in pieces if p.copy == copy)
        for copy in range(pieces[0].copies)
    ]

    assert all(regions == by_copy[0] for regions in by_copy)


@given(st.integers(1, 40), st.integers(1, 40))
def test_stages_have_every_layer_once_in_order_and_as_equally_as_can_be(
    layers: int, stages: int
) -> None:
    cut = stage_layers(layers, stages)

    assert [layer for stage in cut for layer in stage] == list(range(layers))
    assert max(map(len, cut)) - min(map(len, cut)) <= 1
    assert [*map(len, cut)] == sorted(map(len, cut), reverse=True)


@settings(deadline=None)
@given(meshes())
def test_every_stage_is_held_by_all_processes_of_one_place_in_the_pipeline(mesh: Mesh) -> None:
    holders: dict[int, set[int]] = {}
    for rank in range(mesh.size):
        for stage in process_stages(mesh, rank):
            holders.setdefault(stage, set()).add(mesh.coordinates(rank)["pipeline"])

    assert holders == {stage: {stage % mesh.pipeline} for stage in range(mesh.stages)}


def test_a_tied_table_is_on_the_first_and_the_last_stage() -> None:
    mesh = Mesh(pipeline=3)

    held = [EMBEDDING in layout(make_shape(), mesh, rank) for rank in range(3)]

    assert held == [True, False, True]


@pytest.mark.parametrize(
    ("name", "offset", "size"),
    [
        ("layers.0.self_attn.q_proj.weight", (32, 0), (32, 64)),
        ("layers.0.self_attn.o_proj.weight", (0, 32), (64, 32)),
        ("layers.0.mlp.down_proj.weight", (0, 96), (64, 96)),
        ("layers.0.input_layernorm.weight", (0,), (64,)),
        ("embed_tokens.weight", (128, 0), (128, 64)),
    ],
    ids=[
        "the first product of a pair by its rows",
        "attention's output by its columns",
        "the feed-forward's output by its columns",
        "norms whole",
        "the table by its ids",
    ],
)
def test_tensor_parallelism_cuts_as_megatron_does(
    name: str, offset: tuple[int, ...], size: tuple[int, ...]
) -> None:
    piece = layout(make_shape(), Mesh(tensor=2), 1)[name]

    assert piece.region == Region(offset, size)


@given(regions(), regions())
def test_what_two_regions_share_is_what_both_cover(one: Region, other: Region) -> None:
    shared = set(_elements(one)) & set(_elements(other))

    met = one.intersect(other)

    assert (met is None) is (not shared)
    assert met == other.intersect(one)
    if met is not None:
        assert set(_elements(met)) == shared
        assert met.elements == len(shared)


@given(regions())
def test_a_region_shares_nothing_with_an_empty_one_and_itself_with_itself(region: Region) -> None:
    empty = Region(region.offset, (0, region.size[1]))

    assert region.intersect(empty) is None
    assert region.intersect(region) == region


@given(regions(), regions())
def test_the_index_within_another_region_picks_the_same_elements(
    one: Region, other: Region
) -> None:
    met = one.intersect(other)
    if met is None:
        return

    rows, columns = met.within(one)

    picked = [
        (one.offset[0] + row, one.offset[1] + column)
        for row in range(one.size[0])[rows]
        for column in range(one.size[1])[columns]
    ]
    assert picked == _elements(met)

"""Growth of what a process of a mesh holds, from no more of the old model than it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscaling.growth.axis import Axis, Fill, Span
from modelscaling.growth.mode import GrowthMode
from modelscaling.growth.tensor_growth import Kind, TensorGrowth
from modelscaling.layout import Region, layout
from modelscaling.mesh import Mesh
from tests.examples import examples
from tests.growth.growing import grown, make_shape, make_state, plan, small_shapes

if TYPE_CHECKING:
    from modelscaling.shape import ModelShape

MESHES = (
    Mesh(dataShard=3),
    Mesh(dataShard=2, tensor=2),
    Mesh(pipeline=2),
    Mesh(pipeline=2, stagesPerProcess=2),
    Mesh(dataReplicate=2, context=2),
    Mesh(pipeline=2, dataShard=2, tensor=2),
)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("hidden_size", [48, 26], ids=["hidden size cloned", "hidden size padded"])
def test_every_shard_is_bitwise_what_the_whole_has_there(
    mesh: Mesh, hidden_size: int, *, is_tied: bool
) -> None:
    growth = plan(
        make_shape(tied_embeddings=is_tied),
        noise=0.3,
        layers=5,
        hidden_size=hidden_size,
        heads=12,
        kv_heads=4,
        feed_forward_size=66,
        vocabulary_size=84,
    )
    state = make_state(growth.before)
    whole = grown(state, growth)
    seen = set()
    for rank in range(mesh.size):
        pieces = layout(growth.shape, mesh, rank)
        for name, mine in grown(state, growth, mesh=mesh, rank=rank).items():
            region = pieces[name.partition(".")[2]].region
            index = tuple(
                slice(start, start + length)
                for start, length in zip(region.offset, region.size, strict=True)
            )
            assert torch.equal(whole[name][index], mine), f"{name} on rank {rank}"
            seen.add(name)

    assert seen == set(whole)
    assert not any(tensor.isnan().any() for tensor in whole.values())


@settings(deadline=None, max_examples=examples(15))
@given(small=small_shapes(), amounts=st.tuples(*[st.integers(0, 3)] * 5), shards=st.integers(2, 5))
def test_shards_of_any_growth_are_the_wholes(
    small: ModelShape, amounts: tuple[int, ...], shards: int
) -> None:
    layers, hidden, queries, feed_forward, vocabulary = amounts
    growth = plan(
        small,
        GrowthMode.STACK if layers == 1 else GrowthMode.PRESERVE,
        layers=small.layers + layers,
        hidden_size=small.hidden_size + 5 * hidden,
        heads=small.heads + queries * small.kv_heads,
        feed_forward_size=small.feed_forward_size + 3 * feed_forward,
        vocabulary_size=small.vocabulary_size + 2 * vocabulary,
    )
    state = make_state(small)
    whole = grown(state, growth)
    mesh = Mesh(dataShard=shards)
    parts = [grown(state, growth, mesh=mesh, rank=rank) for rank in range(shards)]

    for name, tensor in whole.items():
        assert torch.equal(tensor, torch.cat([part[name] for part in parts])), name


def test_a_region_needs_the_smallest_block_that_it_is_copied_from() -> None:
    growth = TensorGrowth(
        source="w",
        axes=(
            Axis(6, (Span(2, source=0), Span(3, fill=Fill.ZERO), Span(4, source=2))),
            Axis(3, (Span(3, source=0), Span(3, source=0))),
        ),
    )

    assert growth.needed(Region((4, 2), (3, 2)), Kind.MODEL) == Region((2, 0), (2, 3))
    assert growth.needed(Region((2, 0), (3, 6)), Kind.MODEL) is None


def test_the_mean_of_a_vocabulary_needs_all_rows_and_its_moments_none() -> None:
    growth = plan(make_shape(), vocabulary_size=70).growth()["lm_head.weight"]
    new_rows = Region((65, 0), (5, 24))

    assert growth.needed(new_rows, Kind.MODEL) == Region((0, 0), (61, 24))
    assert growth.needed(new_rows, Kind.EXP_AVG) is None


def test_a_copied_layer_needs_no_moments() -> None:
    growth = plan(make_shape(), layers=3).growth()["layers.2.mlp.up_proj.weight"]
    everything = Region((0, 0), (40, 24))

    assert growth.source == "layers.1.mlp.up_proj.weight"
    assert growth.needed(everything, Kind.MODEL) == everything
    assert growth.needed(everything, Kind.EXP_AVG_SQ) is None

"""Which shapes can be reached from which, in which steps, and what is said of the others."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscaling.growth.mode import Exactness, GrowthMode
from modelscaling.growth.plan import UnreachableShapeError, plan_growth
from modelscaling.layout import weights
from modelscaling.preset import PRESETS
from modelscaling.shape import Lora
from tests.growth.growing import make_shape, plan, small_shapes

if TYPE_CHECKING:
    from modelscaling.shape import ModelShape


@pytest.mark.parametrize(
    ("preset", "layers", "parameters"),
    [("mistral-7b-v0.1", 48, 10_731_524_096), ("llama-2-7b", 40, 8_357_482_496)],
)
def test_deeper_public_models_have_the_counts_that_were_published(
    preset: str, layers: int, parameters: int
) -> None:
    growth = plan(PRESETS[preset], layers=layers)

    assert growth.shape.parameters() == parameters
    assert sum(prod(tensor.after) for tensor in growth.growth().values()) == parameters


@settings(deadline=None)
@given(small=small_shapes(), large=small_shapes(), mode=st.sampled_from(GrowthMode))
def test_a_plan_reaches_what_was_asked_for_tensor_by_tensor(
    small: ModelShape, large: ModelShape, mode: GrowthMode
) -> None:
    try:
        growth = plan_growth(small, large, mode)
    except UnreachableShapeError:
        return

    assert replace(growth.shape, norm_epsilon=large.norm_epsilon) == large
    assert weights(large) == {name: t.after for name, t in growth.growth().items()}
    old = weights(small)
    assert all(old[t.source] == t.before for t in growth.growth().values())


def test_nothing_to_grow_is_no_step_and_changes_nothing() -> None:
    growth = plan(make_shape())

    assert growth.steps == ()
    assert growth.exactness is Exactness.BITWISE
    assert growth.shape == make_shape()


def test_a_model_with_adapters_does_not_grow_and_one_that_stays_needs_no_growth() -> None:
    adapted = replace(make_shape(), lora=Lora(rank=2, alpha=4.0, targets=("q_proj",)))

    assert plan_growth(adapted, adapted, GrowthMode.PRESERVE).steps == ()
    with pytest.raises(UnreachableShapeError, match="lora: a model with adapters does not grow"):
        plan_growth(adapted, replace(adapted, layers=2 * adapted.layers), GrowthMode.STACK)
    with pytest.raises(UnreachableShapeError, match=r"lora: .* is not the None of the"):
        plan_growth(make_shape(), adapted, GrowthMode.PRESERVE)


def test_steps_are_in_an_order_in_which_nothing_fresh_is_copied() -> None:
    growth = plan(
        make_shape(),
        layers=3,
        hidden_size=48,
        heads=16,
        kv_heads=8,
        feed_forward_size=50,
        vocabulary_size=70,
        context_length=20,
    )

    assert [step.field for step in growth.steps] == [
        "hiddenSize",
        "kvHeads",
        "feedForwardSize",
        "vocabularySize",
        "contextLength",
        "layers",
    ]


def test_layers_are_inserted_after_their_originals_spread_evenly() -> None:
    growth = plan(make_shape(layers=4), layers=6).growth()
    origins = [growth[f"layers.{i}.mlp.up_proj.weight"] for i in range(6)]

    assert [tensor.source.split(".")[1] for tensor in origins] == ["0", "1", "1", "2", "3", "3"]
    assert [tensor.carries_moments for tensor in origins] == [True, True, False] * 2


def test_stacked_layers_repeat_the_whole_stack() -> None:
    growth = plan(make_shape(layers=2), GrowthMode.STACK, layers=5).growth()
    origins = [growth[f"layers.{i}.mlp.down_proj.weight"] for i in range(5)]

    assert [tensor.source.split(".")[1] for tensor in origins] == ["0", "1", "0", "1", "0"]
    assert [tensor.carries_moments for tensor in origins] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"layers": 1},
            "layers: 1 is less than the 2 of the trained model, and a model does not shrink; set "
            "it to at least 2",
            id="fewer layers",
        ),
        pytest.param(
            {"heads": 2, "head_size": 16, "kv_heads": 2},
            "heads: 2 is less than the 4",
            id="larger heads in place of more",
        ),
        pytest.param({"head_size": 16}, "set headSize=8 or heads=8, or the mode to Stack", id="hd"),
        pytest.param(
            {"head_size": 10}, "headSize: 10 is not the 8 of the trained model", id="no heads of 8"
        ),
        pytest.param({"rope_theta": 5e5}, "ropeTheta: 500000 is not the 10000", id="rotary base"),
        pytest.param(
            {"tied_embeddings": True},
            "tiedEmbeddings: True is not the False of the trained model",
            id="tied",
        ),
    ],
)
def test_what_cannot_be_preserved_is_refused_with_what_can(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnreachableShapeError) as caught:
        plan(make_shape(), **changes)

    assert message in str(caught.value)


def test_every_field_that_is_in_the_way_is_named() -> None:
    with pytest.raises(UnreachableShapeError) as caught:
        plan(make_shape(), layers=1, vocabulary_size=60, rope_theta=2.0)

    assert [o.field for o in caught.value.obstacles] == ["layers", "vocabularySize", "ropeTheta"]


@pytest.mark.parametrize("mode", GrowthMode)
def test_groups_that_do_not_fit_are_refused_with_the_nearest_that_do(mode: GrowthMode) -> None:
    small = make_shape(heads=8, kv_heads=2)
    with pytest.raises(UnreachableShapeError) as caught:
        plan(small, mode, heads=9, kv_heads=3)

    assert str(caught.value) == (
        "kvHeads: heads=8 in 2 groups do not become heads=9 in 3 groups: a query head would have "
        "to leave its key/value head; set heads=12 or kvHeads=9"
    )
    assert plan(small, heads=12, kv_heads=3).shape.heads == 12
    assert plan(small, heads=9, kv_heads=9).shape.kv_heads == 9


@settings(deadline=None)
@given(small=small_shapes(), heads=st.integers(1, 24), kv_heads=st.integers(1, 24))
def test_whatever_is_proposed_can_be_reached(small: ModelShape, heads: int, kv_heads: int) -> None:
    if heads % kv_heads or heads < small.heads or kv_heads < small.kv_heads:
        return
    try:
        plan(small, heads=heads, kv_heads=kv_heads)
    except UnreachableShapeError as error:
        _, _, proposed = str(error).partition("; set ")
        assert proposed
        for one in proposed.split(" or "):
            field, _, value = one.partition("=")
            changes: dict[str, Any] = {"heads": heads, "kv_heads": kv_heads}
            changes["heads" if field == "heads" else "kv_heads"] = int(value)
            assert plan(small, **changes).exactness is Exactness.BITWISE


@pytest.mark.parametrize(
    "changes", [{"heads": 6, "kv_heads": 3}, {"heads": 8}], ids=["groups", "queries per group"]
)
@pytest.mark.parametrize("mode", GrowthMode)
def test_heads_that_are_normed_together_take_no_others_in(
    changes: dict[str, Any], mode: GrowthMode
) -> None:
    with pytest.raises(
        UnreachableShapeError, match="set heads=4, headSize=8 and kvHeads to 2 or 4"
    ):
        plan(make_shape(qk_norm=True), mode, **changes)

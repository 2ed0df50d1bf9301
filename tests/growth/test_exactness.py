"""What growth does to the logits, of models of many shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscaling.growth.mode import Exactness, GrowthMode
from tests.examples import examples
from tests.growth.growing import (
    SEEDS,
    logits_before_and_after,
    make_shape,
    plan,
    relative_difference,
    small_shapes,
)
from tests.growth.in_order import InOrder

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelscaling.shape import ModelShape

BITWISE: dict[str, Callable[[ModelShape, int], dict[str, Any]]] = {
    "layers": lambda s, n: {"layers": s.layers + n},
    "feed-forward": lambda s, n: {"feed_forward_size": s.feed_forward_size + 16 * n},
    "groups": lambda s, n: {
        "heads": s.heads // s.kv_heads * (s.kv_heads + n),
        "kv_heads": s.kv_heads + n,
    },
    "query heads per group": lambda s, n: {"heads": s.heads + s.kv_heads * n},
    "KV heads repeated": lambda s, _: {"kv_heads": s.heads},
    "everything of the heads": lambda s, n: {
        "heads": -(-s.heads // s.kv_heads // 2) * (2 * s.kv_heads + n),
        "kv_heads": 2 * s.kv_heads + n,
    },
    "vocabulary": lambda s, n: {"vocabulary_size": s.vocabulary_size + 5 * n},
    "context": lambda s, n: {"context_length": s.context_length + 7 * n},
}
ROUNDING = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)], ids=["fp32", "fp64"]
)


@pytest.mark.parametrize("change", BITWISE.values(), ids=BITWISE.keys())
@settings(deadline=None, max_examples=examples(12))
@given(small=small_shapes(), amount=st.integers(1, 4), seed=SEEDS)
def test_logits_do_not_change_in_a_single_bit(
    change: Callable[[ModelShape, int], dict[str, Any]], small: ModelShape, amount: int, seed: int
) -> None:
    growth = plan(small, **change(small, amount))
    with InOrder():
        old, new = logits_before_and_after(growth, torch.float32, seed=seed)

    assert growth.exactness is Exactness.BITWISE
    assert old.abs().max() > 0
    assert torch.equal(old, new)


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("change", BITWISE.values(), ids=BITWISE.keys())
def test_the_librarys_products_keep_the_bits_at_usual_sizes(
    change: Callable[[ModelShape, int], dict[str, Any]], *, is_tied: bool
) -> None:
    small = make_shape(
        hidden_size=64,
        heads=8,
        kv_heads=2,
        feed_forward_size=384,
        vocabulary_size=256,
        context_length=32,
        tied_embeddings=is_tied,
    )
    old, new = logits_before_and_after(plan(small, **change(small, 2)), torch.float32)

    assert torch.equal(old, new)


@pytest.mark.parametrize("change", BITWISE.values(), ids=BITWISE.keys())
@settings(deadline=None, max_examples=examples(12))
@given(small=small_shapes(narrowest=4), amount=st.integers(1, 4), seed=SEEDS)
def test_at_any_size_the_librarys_products_differ_by_no_more_than_rounding(
    change: Callable[[ModelShape, int], dict[str, Any]], small: ModelShape, amount: int, seed: int
) -> None:
    growth = plan(small, **change(small, amount))
    old, new = logits_before_and_after(growth, torch.float64, seed=seed)

    assert relative_difference(old, new) <= 1e-12


@ROUNDING
@settings(deadline=None, max_examples=examples(15))
@given(small=small_shapes(narrowest=16), size=st.integers(2, 120), seed=SEEDS)
def test_a_larger_hidden_size_changes_logits_by_rounding(
    dtype: torch.dtype, tolerance: float, small: ModelShape, size: int, seed: int
) -> None:
    growth = plan(small, hidden_size=small.hidden_size + size)
    old, new = logits_before_and_after(growth, dtype, seed=seed)

    assert growth.exactness is Exactness.ROUNDING
    assert relative_difference(old, new) <= tolerance


@ROUNDING
@settings(deadline=None, max_examples=examples(10))
@given(small=small_shapes(narrowest=16), times=st.integers(2, 4), seed=SEEDS)
def test_a_hidden_size_that_is_cloned_changes_logits_by_rounding(
    dtype: torch.dtype, tolerance: float, small: ModelShape, times: int, seed: int
) -> None:
    growth = plan(small, hidden_size=small.hidden_size * times)
    old, new = logits_before_and_after(growth, dtype, seed=seed)

    assert relative_difference(old, new) <= tolerance


@settings(deadline=None, max_examples=examples(25))
@given(small=small_shapes(narrowest=4), amounts=st.tuples(*[st.integers(0, 3)] * 7), seed=SEEDS)
def test_everything_at_once_changes_logits_by_rounding(
    small: ModelShape, amounts: tuple[int, ...], seed: int
) -> None:
    layers, hidden, groups, queries, feed_forward, vocabulary, context = amounts
    per_group = small.heads // small.kv_heads + queries
    growth = plan(
        small,
        layers=small.layers + layers,
        hidden_size=small.hidden_size + 7 * hidden,
        heads=(small.kv_heads + groups) * per_group,
        kv_heads=small.kv_heads + groups,
        feed_forward_size=small.feed_forward_size + 9 * feed_forward,
        vocabulary_size=small.vocabulary_size + 3 * vocabulary,
        context_length=small.context_length + context,
    )
    old, new = logits_before_and_after(growth, torch.float64, seed=seed)

    assert relative_difference(old, new) <= 1e-12


def test_the_epsilon_of_the_norms_shrinks_with_the_mean_square_of_a_padded_hidden_size() -> None:
    growth = plan(make_shape(norm_epsilon=1e-2), hidden_size=31)
    old, new = logits_before_and_after(growth, torch.float64)

    assert growth.shape.norm_epsilon == 1e-2 * 24 / 31
    assert relative_difference(old, new) <= 1e-12


@pytest.mark.parametrize(
    "changes",
    [{"layers": 4}, {"head_size": 16}, {"rope_theta": 5e5}, {"layers": 3, "hidden_size": 48}],
    ids=["stacked layers", "head size", "rotary base", "stacked beside an exact step"],
)
def test_what_changes_the_logits_says_so(changes: dict[str, Any]) -> None:
    growth = plan(make_shape(), GrowthMode.STACK, **changes)
    old, new = logits_before_and_after(growth, torch.float64)

    assert growth.exactness is Exactness.INEXACT
    assert any("the logits" in step.description for step in growth.steps)
    assert relative_difference(old, new) > 1e-3


def test_a_larger_head_changes_nothing_but_the_positions() -> None:
    growth = plan(make_shape(context_length=1), GrowthMode.STACK, head_size=16)
    old, new = logits_before_and_after(growth, torch.float64)

    assert relative_difference(old, new) <= 1e-12


@pytest.mark.parametrize(
    "changes",
    [{"kv_heads": 4}, {"layers": 5}, {"feed_forward_size": 64}, {"hidden_size": 48}],
    ids=["KV heads repeated", "layers", "feed-forward", "hidden size"],
)
def test_queries_and_keys_that_are_normed_as_one_vector_stay_as_they_are(
    changes: dict[str, Any],
) -> None:
    small = make_shape(qk_norm=True, norm_after=True)
    old, new = logits_before_and_after(plan(small, **changes), torch.float64)

    assert relative_difference(old, new) <= 1e-12

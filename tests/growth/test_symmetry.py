"""A hidden size that is cloned stays symmetric, unless noise that cancels is added."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.growth.growing import (
    grown,
    logits_before_and_after,
    make_shape,
    make_state,
    plan,
    relative_difference,
    small_shapes,
)
from tests.growth.test_training import train

if TYPE_CHECKING:
    from modelscaling.shape import ModelShape


@settings(deadline=None, max_examples=examples(10))
@given(small=small_shapes(), times=st.integers(2, 4))
def test_noise_changes_logits_by_rounding(small: ModelShape, times: int) -> None:
    growth = plan(small, noise=0.3, hidden_size=small.hidden_size * times, layers=small.layers + 1)
    old, new = logits_before_and_after(growth, torch.float64)

    assert relative_difference(old, new) <= 1e-12


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_training_tells_copies_apart_where_there_was_noise(noise: float) -> None:
    growth = plan(make_shape(), noise=noise, hidden_size=48)
    start = grown(make_state(growth.before, dtype=torch.float64), growth)
    state = train(start, growth.shape, steps=range(5, 8))
    first, second = state["model.embed_tokens.weight"].chunk(2, dim=1)

    difference = float((first - second).abs().max())
    assert difference < 1e-12 if noise == 0 else difference > 1e-5


def test_noise_is_as_large_as_was_asked_for() -> None:
    growth = plan(make_shape(hidden_size=60), noise=0.3, hidden_size=180)
    state = make_state(growth.before)
    name = "model.layers.0.mlp.gate_proj.weight"
    plain = state[name].repeat(1, 3) / 3
    noise = grown(state, growth)[name] - plain

    assert float(noise.std() / plain.std()) == pytest.approx(0.3, rel=0.05)
    assert noise.view(-1, 3, 60).sum(1).abs().max() <= 1e-6

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.growth_budget import Budget, Phase
from modelscaling.shape import ModelShape

SMALL = ModelShape(
    layers=4,
    hidden_size=64,
    heads=2,
    kv_heads=2,
    head_size=32,
    feed_forward_size=192,
    vocabulary_size=256,
    context_length=128,
    tied_embeddings=True,
)
BATCH = 16


def step_flops(shape: ModelShape) -> int:
    return BATCH * 128 * shape.flops_per_token()


def make_budget(*, large: ModelShape, steps: int) -> Budget:
    """Return what so many steps of a model take."""
    return Budget(flops=steps * step_flops(large), batch=BATCH, small=SMALL)


@pytest.mark.parametrize(
    "large",
    [
        pytest.param(replace(SMALL, layers=8), id="deeper"),
        pytest.param(replace(SMALL, hidden_size=128), id="wider"),
    ],
)
def test_both_ways_take_the_budget_to_half_a_step(large: ModelShape) -> None:
    budget = make_budget(large=replace(SMALL, layers=8), steps=500)
    small, grown = budget.small_phase(), budget.grown_phase(large)

    scratch_flops = budget.scratch_phase(large).until_step * step_flops(large)
    small_flops = small.until_step * step_flops(SMALL)
    grown_flops = small_flops + (grown.until_step - small.until_step) * step_flops(large)

    assert scratch_flops == pytest.approx(budget.flops, abs=step_flops(large) / 2)
    assert grown_flops == pytest.approx(budget.flops, abs=step_flops(large) / 2)
    assert small_flops == pytest.approx(budget.flops / 4, abs=step_flops(SMALL) / 2)


def test_the_larger_model_from_scratch_takes_as_many_steps_as_its_budget_was_made_for() -> None:
    large = replace(SMALL, layers=8)

    phase = make_budget(large=large, steps=500).scratch_phase(large)

    assert phase == Phase(shape=large, until_step=500, decay_steps=100)


def test_the_rate_falls_over_as_many_steps_of_the_large_model_on_both_ways() -> None:
    large = replace(SMALL, hidden_size=128)
    budget = make_budget(large=large, steps=500)

    assert budget.grown_phase(large).decay_steps == 100
    assert budget.scratch_phase(large).decay_steps == 100
    assert budget.small_phase().decay_steps == 0


def test_tokens_are_those_of_all_phases_so_far() -> None:
    phase = Phase(shape=SMALL, until_step=10, decay_steps=0)

    assert make_budget(large=SMALL, steps=1).tokens(phase) == 10 * BATCH * 128

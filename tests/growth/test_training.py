"""Training that goes on after growth: gradients, moments and settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscaling.growth.lineage import Lineage
from modelscaling.growth.mode import GrowthMode
from modelscaling.layout import weights
from modelscaling_trainer.optimizer import MOMENTS, AdamW
from tests.examples import examples
from tests.growth.growing import (
    SEEDS,
    grown,
    make_decoder,
    make_ids,
    make_shape,
    make_state,
    plan,
    small_shapes,
)
from tests.trainer.runs import make_run

if TYPE_CHECKING:
    from torch import Tensor

    from modelscaling.growth.heritage import Heritage
    from modelscaling.shape import ModelShape

SETTINGS = make_run("unused", optimizer__weight_decay=0.3, optimizer__epsilon=1e-4).optimizer
GREW_AT = 5


def gradients(state: dict[str, Tensor], shape: ModelShape, ids: Tensor) -> dict[str, Tensor]:
    decoder = make_decoder(state, shape)
    logits = decoder(ids[:, :-1]).flatten(0, 1)
    parameters = decoder.weights()
    loss = F.cross_entropy(logits, ids[:, 1:].flatten())
    return dict(zip(parameters, torch.autograd.grad(loss, [*parameters.values()]), strict=True))


def train(
    state: dict[str, Tensor],
    shape: ModelShape,
    *,
    steps: range,
    heritage: dict[str, Heritage] | None = None,
) -> dict[str, Tensor]:
    """Return a state after more steps on text that depends on their numbers only."""
    state = {name: tensor.clone() for name, tensor in state.items()}
    held = {name: state[f"model.{name}"] for name in weights(shape)}
    optimizer = AdamW(held, SETTINGS, heritage)
    for moment, tensors in optimizer.moments().items():
        for name, tensor in tensors.items():
            tensor.copy_(state[f"{moment}.{name}"])
    optimizer.set_steps(steps.start)
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        size = (3, make_shape().context_length)
        ids = torch.randint(0, make_shape().vocabulary_size, size, generator=draw)
        optimizer.step(gradients(state, shape, ids))
    for moment in MOMENTS:
        state |= {f"{moment}.{n}": t for n, t in optimizer.moments()[moment].items()}
    return state


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("times", [2, 3])
def test_cloning_and_stepping_commute(times: int, *, is_tied: bool) -> None:
    small = make_shape(tied_embeddings=is_tied)
    growth = plan(small, hidden_size=small.hidden_size * times)
    steps = range(GREW_AT, GREW_AT + 2)
    state = make_state(small, dtype=torch.float64)
    heritage = Lineage().grown(small, step=GREW_AT, mode=GrowthMode.PRESERVE).heritage(growth.shape)

    grown_first = train(grown(state, growth), growth.shape, steps=steps, heritage=heritage)
    grown_last = grown(train(state, small, steps=steps), growth)

    assert grown_first.keys() == grown_last.keys()
    for name, expected in grown_last.items():
        scale = expected.abs().max()
        assert (expected - grown_first[name]).abs().max() / scale <= 1e-9, name


def test_without_its_settings_a_clone_leaves_the_course() -> None:
    small = make_shape()
    growth = plan(small, hidden_size=48)
    steps = range(GREW_AT, GREW_AT + 1)
    state = make_state(small, dtype=torch.float64)
    trained = train(grown(state, growth), growth.shape, steps=steps)
    expected = grown(train(state, small, steps=steps), growth)

    name = "model.layers.0.mlp.up_proj.weight"
    assert (expected[name] - trained[name]).abs().max() > 1e-6


def test_padding_and_stepping_commute_for_what_was_there() -> None:
    """The gains of the norms are scaled; all other old entries move as if nothing were new."""
    small = make_shape()
    growth = plan(small, hidden_size=31)
    steps = range(GREW_AT, GREW_AT + 1)
    state = make_state(small, dtype=torch.float64)
    heritage = Lineage().grown(small, step=GREW_AT, mode=GrowthMode.PRESERVE).heritage(growth.shape)
    trained = train(grown(state, growth), growth.shape, steps=steps, heritage=heritage)
    expected = grown(train(state, small, steps=steps), growth)

    for name in weights(small):
        old = tuple(slice(0, length) for length in weights(small)[name])
        for kind in ("model", *MOMENTS):
            mine, other = trained[f"{kind}.{name}"][old], expected[f"{kind}.{name}"][old]
            assert (mine - other).abs().max() / other.abs().max() <= 1e-9, f"{kind}.{name}"


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_layers_that_are_inserted_leave_the_gradients_exactly_as_they_were(
    *, is_tied: bool
) -> None:
    small = make_shape(tied_embeddings=is_tied)
    growth = plan(small, layers=5)
    state = make_state(small)
    ids = make_ids(small, samples=4)
    old = gradients(state, small, ids)
    new = gradients(grown(state, growth), growth.shape, ids)
    origins = {n: t.source for n, t in growth.growth().items() if t.carries_moments}

    assert sorted(origins.values()) == sorted(old)
    for name, source in origins.items():
        assert torch.equal(old[source], new[name]), name


@settings(deadline=None, max_examples=examples(10))
@given(small=small_shapes(narrowest=4), amounts=st.tuples(*[st.integers(0, 2)] * 4), seed=SEEDS)
def test_zeros_leave_the_gradients_of_what_was_there(
    small: ModelShape, amounts: tuple[int, ...], seed: int
) -> None:
    layers, queries, groups, feed_forward = amounts
    per_group = small.heads // small.kv_heads + queries
    changes: dict[str, Any] = {
        "layers": small.layers + layers,
        "heads": per_group * (small.kv_heads + groups),
        "kv_heads": small.kv_heads + groups,
        "feed_forward_size": small.feed_forward_size + 3 * feed_forward,
    }
    growth = plan(small, **changes)
    state = make_state(small, dtype=torch.float64, seed=seed)
    ids = make_ids(small, seed=seed)
    new = gradients(grown(state, growth, seed=seed), growth.shape, ids)
    # Growing the gradients as moments lays the old ones where they belong now.
    expected = grown({f"exp_avg.{n}": g for n, g in gradients(state, small, ids).items()}, growth)

    for name, tensor in growth.growth().items():
        if tensor.carries_moments:
            # Entries that are 0 are new, or had no gradient.
            was_there = expected[f"exp_avg.{name}"] != 0
            difference = (new[name] - expected[f"exp_avg.{name}"])[was_there]
            largest = max(float(g.abs().max()) for g in new.values())
            assert difference.numel() == 0 or difference.abs().max() <= 1e-12 * largest, name

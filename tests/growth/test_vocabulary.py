"""New tokens: what they begin as, and what they cost."""

from __future__ import annotations

from math import log

import pytest
import torch

from modelscaling_trainer.model.decoder import cross_entropy_sum
from tests.growth.growing import grown, make_decoder, make_ids, make_shape, make_state, plan


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_a_new_row_is_the_mean_of_the_old_ones(*, is_tied: bool) -> None:
    growth = plan(make_shape(tied_embeddings=is_tied), vocabulary_size=70)
    state = make_state(growth.before)
    new = grown(state, growth)

    tables = ["embed_tokens.weight", *([] if is_tied else ["lm_head.weight"])]
    for name in (f"model.{table}" for table in tables):
        assert torch.equal(new[name][:61], state[name])
        assert torch.allclose(new[name][61:], state[name].mean(0).expand(9, 24), atol=1e-7)


@pytest.mark.parametrize("size", [62, 122, 610])
def test_the_loss_rises_by_no_more_than_the_logarithm_of_the_ratio(size: int) -> None:
    growth = plan(make_shape(), vocabulary_size=size)
    state = make_state(growth.before, dtype=torch.float64)
    ids = make_ids(growth.before, samples=8)

    with torch.no_grad():
        old, new = (
            cross_entropy_sum(make_decoder(values, shape)(ids[:, :-1]), ids[:, 1:]).item()
            for values, shape in (
                (state, growth.before),
                (grown(state, growth), growth.shape),
            )
        )
    rise = (new - old) / ids[:, 1:].numel()

    assert 0 < rise <= log(size / 61)
    assert f"at most {log(size / 61):.4f}" in growth.steps[0].description


def test_new_tokens_are_known_in_a_larger_hidden_size_too() -> None:
    growth = plan(make_shape(), vocabulary_size=70, hidden_size=48)
    state = make_state(growth.before)
    new = grown(state, growth)
    mean = state["model.lm_head.weight"].mean(0)

    assert torch.allclose(new["model.lm_head.weight"][65], mean.repeat(2) / 2, atol=1e-7)

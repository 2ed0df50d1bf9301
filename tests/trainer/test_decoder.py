from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscaling_trainer.model.decoder import Decoder, cross_entropy_sum
from tests.examples import examples
from tests.trainer.decoders import make_decoder, make_shape
from tests.trainer.families import FAMILIES, draw, make_transformers_model, their_name

if TYPE_CHECKING:
    from modelscaling.shape import ModelShape

SHAPES = st.builds(
    lambda kv_heads, groups, half_head, **fields: make_shape(
        kv_heads=kv_heads, heads=kv_heads * groups, head_size=2 * half_head, **fields
    ),
    kv_heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    half_head=st.integers(1, 5),
    layers=st.integers(1, 3),
    hidden_size=st.integers(2, 40),
    feed_forward_size=st.integers(1, 50),
    vocabulary_size=st.integers(2, 70),
    tied_embeddings=st.booleans(),
    qkv_bias=st.booleans(),
    qk_norm=st.booleans(),
    norm_after=st.booleans(),
)


@settings(max_examples=examples(30), deadline=None)
@given(shape=SHAPES)
def test_the_parameter_count_is_the_shapes(shape: ModelShape) -> None:
    count = sum(p.numel() for p in Decoder(shape, compute_dtype=torch.float32).parameters())

    assert shape.parameters() == count


@pytest.mark.parametrize(
    "changes",
    [
        {"tied_embeddings": True},
        {"kv_heads": 4},
        {"kv_heads": 1},
        {"head_size": 16},
        {"rope_theta": 500_000.0, "norm_epsilon": 1e-6},
        *FAMILIES.values(),
    ],
    ids=["tied", "multi-head", "multi-query", "wide heads", "other constants", *FAMILIES],
)
def test_logits_and_gradients_are_those_of_hugging_face(changes: dict[str, object]) -> None:
    shape = make_shape(**changes)
    ours = make_decoder(shape)
    draw(ours)
    theirs = make_transformers_model(shape)
    weights = {their_name(name): tensor for name, tensor in ours.state_dict().items()}
    theirs.load_state_dict(weights)
    ids = torch.randint(shape.vocabulary_size, (3, 40))

    mine, reference = ours(ids), theirs(ids).logits
    mine.square().mean().backward()
    reference.square().mean().backward()

    assert torch.allclose(reference, mine, atol=1e-5, rtol=1e-5)
    for name, parameter in ours.named_parameters():
        other = theirs.get_parameter(their_name(name))
        assert other.grad is not None
        assert parameter.grad is not None
        assert torch.allclose(other.grad, parameter.grad, atol=1e-5, rtol=1e-3), name


def test_the_loss_of_a_fresh_model_is_that_of_guessing() -> None:
    shape = make_shape(vocabulary_size=256)
    ids = torch.randint(256, (4, 40))
    loss = make_decoder(shape).loss_sum(ids, ids.flip(0)).item() / ids.numel()

    assert loss == pytest.approx(torch.tensor(256.0).log().item(), abs=0.1)


def test_first_weights_follow_the_seed_and_the_name_only() -> None:
    shallow = make_decoder(make_shape()).state_dict()
    deep = make_decoder(make_shape(layers=3)).state_dict()
    other = make_decoder(make_shape(), seed=1).state_dict()
    first, second = (f"layers.{layer}.mlp.up_proj.weight" for layer in (0, 1))

    assert torch.equal(shallow[second], deep[second])
    assert not torch.equal(shallow[first], shallow[second])
    assert not torch.equal(shallow[first], other[first])


def test_bfloat16_learns() -> None:
    shape = make_shape()
    model = make_decoder(shape, compute_dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.arange(40).repeat(2, 1)
    losses = []
    for _ in range(15):
        loss = model.loss_sum(ids, ids.roll(-1, 1)) / ids.numel()
        losses.append(loss.item())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    assert losses[-1] < 0.5 * losses[0]


def test_bfloat16_computes_nearly_the_same_with_weights_in_float32() -> None:
    shape = make_shape()
    exact = make_decoder(shape)
    rounded = make_decoder(shape, compute_dtype=torch.bfloat16)
    ids = torch.randint(shape.vocabulary_size, (2, 40))
    losses = [model.loss_sum(ids, ids).item() / ids.numel() for model in (exact, rounded)]

    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert rounded(ids).dtype is torch.bfloat16
    assert {p.dtype for p in rounded.parameters()} == {torch.float32}


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("stages", [2, 3, 5])
def test_pipeline_stages_one_after_the_other_are_the_whole_model(
    *, stages: int, is_tied: bool
) -> None:
    shape = make_shape(layers=5, tied_embeddings=is_tied)
    whole = make_decoder(shape)
    parts = [make_decoder(shape, stage=stage, stages=stages) for stage in range(stages)]
    ids, targets = torch.randint(shape.vocabulary_size, (2, 3, 40))

    x = ids
    for part in parts:
        x = part(x)
    loss = cross_entropy_sum(x, targets)
    torch.autograd.backward(loss)
    expected = whole.loss_sum(ids, targets)
    torch.autograd.backward(expected)

    assert torch.equal(expected, loss)
    sums: dict[str, torch.Tensor] = {}
    for part in parts:
        for name, parameter in part.weights().items():
            assert parameter.grad is not None
            # Both ends of the pipeline have a copy of a tied table and a part of its gradient.
            sums[name] = sums.get(name, 0) + parameter.grad
    assert sums.keys() == whole.weights().keys()
    for name, parameter in whole.weights().items():
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, sums[name], rtol=1e-5, atol=1e-6), name


def test_a_stage_holds_no_more_than_its_own_weights() -> None:
    shape = make_shape(layers=3, tied_embeddings=True)
    first, last = (make_decoder(shape, stage=stage, stages=2) for stage in range(2))

    layers = [
        {int(name.split(".")[1]) for name in stage.weights() if "layers." in name}
        for stage in (first, last)
    ]
    assert layers == [{0, 1}, {2}]
    assert "norm.weight" not in first.weights()
    assert "embed_tokens.weight" in last.weights()
    assert "lm_head.weight" not in last.weights()

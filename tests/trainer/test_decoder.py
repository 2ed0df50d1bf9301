from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from modelscaling.shape import ModelShape
from modelscaling_trainer.decoder import Decoder
from modelscaling_trainer.initial_weights import set_initial_weights


def make_shape(**changes: Any) -> ModelShape:
    fields: dict[str, Any] = {
        "layers": 2,
        "hidden_size": 32,
        "heads": 4,
        "kv_heads": 2,
        "head_size": 8,
        "feed_forward_size": 48,
        "vocabulary_size": 61,
        "context_length": 40,
        "tied_embeddings": False,
    }
    return ModelShape(**fields | changes)


def make_decoder(shape: ModelShape, *, seed: int = 0) -> Decoder:
    decoder = Decoder(shape, compute_dtype=torch.float32)
    set_initial_weights(decoder, seed=seed, layers=shape.layers)
    return decoder


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
)


@settings(max_examples=30, deadline=None)
@given(shape=SHAPES)
def test_the_parameter_count_is_the_shapes(shape: ModelShape) -> None:
    count = sum(p.numel() for p in Decoder(shape, compute_dtype=torch.float32).parameters())

    assert shape.parameters() == count


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied_embeddings": True},
        {"kv_heads": 4},
        {"kv_heads": 1},
        {"head_size": 16},
        {"rope_theta": 500_000.0, "norm_epsilon": 1e-6},
    ],
    ids=["grouped", "tied", "multi-head", "multi-query", "wide heads", "other constants"],
)
def test_logits_and_gradients_are_those_of_hugging_face(changes: dict[str, Any]) -> None:
    shape = make_shape(**changes)
    ours = make_decoder(shape)
    theirs = _hugging_face(shape)
    weights = {
        name if name == "lm_head.weight" else f"model.{name}": tensor
        for name, tensor in ours.state_dict().items()
    }
    theirs.load_state_dict(weights)
    ids = torch.randint(shape.vocabulary_size, (3, 40))

    mine, reference = ours(ids), theirs(ids).logits
    mine.square().mean().backward()
    reference.square().mean().backward()

    assert torch.allclose(reference, mine, atol=1e-5, rtol=0)
    for name, parameter in ours.named_parameters():
        other = theirs.get_parameter(name if name == "lm_head.weight" else f"model.{name}")
        assert other.grad is not None
        assert parameter.grad is not None
        assert torch.allclose(other.grad, parameter.grad, atol=1e-5, rtol=1e-3), name


def _hugging_face(shape: ModelShape) -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.feed_forward_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_size,
            max_position_embeddings=shape.context_length,
            rms_norm_eps=shape.norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
            tie_word_embeddings=shape.tied_embeddings,
        )
    )


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
    model = Decoder(shape, compute_dtype=torch.bfloat16)
    set_initial_weights(model, seed=0, layers=shape.layers)
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
    rounded = Decoder(shape, compute_dtype=torch.bfloat16)
    rounded.load_state_dict(exact.state_dict())
    ids = torch.randint(shape.vocabulary_size, (2, 40))
    losses = [model.loss_sum(ids, ids).item() / ids.numel() for model in (exact, rounded)]

    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert rounded(ids).dtype is torch.bfloat16
    assert {p.dtype for p in rounded.parameters()} == {torch.float32}

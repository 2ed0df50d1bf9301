from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscaling_trainer.model.attention import causal_attention
from tests.examples import examples


def _reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, window: int | None = None
) -> torch.Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    past = torch.ones_like(future).tril(-(window or len(future)))
    out: torch.Tensor = scores.masked_fill(future | past, float("-inf")).softmax(-1) @ v
    return out


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


@settings(max_examples=examples(40), deadline=None)
@given(
    batch=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    groups=st.integers(1, 4),
    tokens=st.integers(1, 150),
    size=st.sampled_from([2, 8, 30]),
    window=st.none() | st.integers(1, 160),
    seed=st.integers(0, 1000),
)
def test_forward_and_backward_are_those_of_the_formula(
    *,
    batch: int,
    kv_heads: int,
    groups: int,
    tokens: int,
    size: int,
    window: int | None,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    shapes = [kv_heads * groups, kv_heads, kv_heads]
    inputs = [
        torch.randn(batch, heads, tokens, size, dtype=torch.float64, requires_grad=True)
        for heads in shapes
    ]
    direction = torch.randn(batch, kv_heads * groups, tokens, size, dtype=torch.float64)
    ours = causal_attention(*inputs, window=window)
    exact = _reference(*inputs, window=window)

    assert torch.allclose(exact, ours, atol=1e-12)
    expected = torch.autograd.grad(exact, inputs, direction)
    actual = torch.autograd.grad(ours, inputs, direction)
    for reference, gradient in zip(expected, actual, strict=True):
        assert torch.allclose(reference, gradient, atol=1e-12)


def test_in_bfloat16_the_error_is_that_of_sdpa() -> None:
    torch.manual_seed(0)
    exact = [torch.randn(2, heads, 200, 32) for heads in (4, 2, 2)]
    rounded = [tensor.bfloat16() for tensor in exact]
    reference, sdpa = _sdpa(*exact), _sdpa(*rounded)
    ours = causal_attention(*rounded)

    def error(result: torch.Tensor) -> float:
        return (result.float() - reference).square().mean().sqrt().item()

    assert error(ours) < 2.0 * error(sdpa)


def test_a_long_context_does_not_keep_all_probabilities() -> None:
    tensors = [torch.randn(1, heads, 2049, 8, requires_grad=True) for heads in (2, 1, 1)]
    out = causal_attention(*tensors)

    assert torch.allclose(_reference(*tensors), out, atol=1e-4)
    assert "Chunked" not in type(out.grad_fn).__name__


@pytest.mark.parametrize("tokens", [63, 64, 65, 128])
def test_a_token_cannot_see_those_after_it(tokens: int) -> None:
    q, k, v = (torch.randn(1, 2, tokens, 8) for _ in range(3))
    before = causal_attention(q, k, v)
    k[:, :, -1], v[:, :, -1] = 9.0, 9.0
    after = causal_attention(q, k, v)

    assert torch.equal(before[:, :, :-1], after[:, :, :-1])
    assert not torch.equal(before[:, :, -1], after[:, :, -1])


@settings(max_examples=examples(40), deadline=None)
@given(
    kv_heads=st.integers(1, 2),
    groups=st.integers(1, 3),
    queries=st.integers(1, 140),
    before=st.integers(0, 150),
    window=st.none() | st.integers(1, 300),
    seed=st.integers(0, 1000),
)
def test_fewer_queries_than_keys_are_the_last_ones(
    *, kv_heads: int, groups: int, queries: int, before: int, window: int | None, seed: int
) -> None:
    torch.manual_seed(seed)
    tokens = before + queries
    heads = kv_heads * groups
    whole = [
        torch.randn(2, count, tokens, 8, dtype=torch.float64, requires_grad=True)
        for count in (heads, kv_heads, kv_heads)
    ]
    direction = torch.randn(2, heads, queries, 8, dtype=torch.float64)
    expected = causal_attention(*whole, window=window)[:, :, before:]
    last = causal_attention(whole[0][:, :, before:], whole[1], whole[2], window=window)

    assert torch.allclose(expected, last, atol=1e-12)
    for reference, gradient in zip(
        torch.autograd.grad(expected, whole, direction),
        torch.autograd.grad(last, whole, direction),
        strict=True,
    ):
        assert torch.allclose(reference, gradient, atol=1e-12)


def test_fewer_queries_than_keys_in_bfloat16_are_near_those_in_float32() -> None:
    torch.manual_seed(0)
    exact = [
        torch.randn(2, heads, tokens, 32, requires_grad=True)
        for heads, tokens in ((4, 100), (2, 200), (2, 200))
    ]
    rounded = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    direction = torch.randn(2, 4, 100, 32)
    expected, actual = causal_attention(*exact), causal_attention(*rounded)

    # 8 bits of mantissa: each product is off by up to 0.4 %, and their errors add up by chance.
    assert _relative_error(expected, actual) < 0.01
    for reference, gradient in zip(
        torch.autograd.grad(expected, exact, direction),
        torch.autograd.grad(actual, rounded, direction.bfloat16()),
        strict=True,
    ):
        assert _relative_error(reference, gradient) < 0.01


@pytest.mark.parametrize("window", [None, 40, 2090])
def test_fewer_queries_than_keys_of_a_long_context_are_the_last_ones(window: int | None) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 2100, 8) for heads in (2, 1, 1))
    last = causal_attention(q[:, :, -70:], k, v, window=window)

    assert torch.allclose(_reference(q, k, v, window=window)[:, :, -70:], last, atol=1e-4)


def _relative_error(expected: torch.Tensor, actual: torch.Tensor) -> float:
    difference = torch.linalg.vector_norm(expected - actual.float())
    return float((difference / torch.linalg.vector_norm(expected)).detach())

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscaling_trainer.attention import causal_attention


def _reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    out: torch.Tensor = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
    return out


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    groups=st.integers(1, 4),
    tokens=st.integers(1, 150),
    size=st.sampled_from([2, 8, 30]),
    seed=st.integers(0, 1000),
)
def test_forward_and_backward_are_those_of_the_formula(
    *, batch: int, kv_heads: int, groups: int, tokens: int, size: int, seed: int
) -> None:
    torch.manual_seed(seed)
    shapes = [kv_heads * groups, kv_heads, kv_heads]
    inputs = [
        torch.randn(batch, heads, tokens, size, dtype=torch.float64, requires_grad=True)
        for heads in shapes
    ]
    direction = torch.randn(batch, kv_heads * groups, tokens, size, dtype=torch.float64)
    ours, exact = causal_attention(*inputs), _reference(*inputs)

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

"""Causal attention with grouped key and value heads, the fastest way that the device has.

On a GPU that is PyTorch's scaled_dot_product_attention. On a CPU it is the slow part of a
training step (about half of the speed of a matrix product, and no faster in bfloat16), so there
the scores are computed here, block by block of query rows: plain batched matrix products over
only those keys that the causal mask allows, with the query heads of a group stacked as rows of
one product. The probabilities are kept for the backward pass, which takes memory that grows with
the square of the context; beyond `_LONGEST_CHUNKED` tokens SDPA takes over.

Queries may be fewer than keys: then they are the last ones of them (context parallelism). A window
hides all but the last keys before each query (Mistral 7B).

Letters of the shapes: B batch, H query heads, K key/value heads, G = H / K query heads of a group,
T query tokens, S key tokens, D head size, N = B·K, R = query rows of a block.
"""

# ruff: noqa: N803, N806 - tensors carry their shapes in their names

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK_ROWS = 64
"""Query rows of a block: fewer skip more of the masked half, more make larger products."""

_LONGEST_CHUNKED = 2048


def causal_attention(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, *, window: int | None = None
) -> Tensor:
    """Return softmax(q·kᵀ/√D + causal mask)·v, of the queries' shape; query i of T sees the keys up
    to S - T + i, and only the last `window` of them where that is given.
    """
    tokens, seen = q_BHTD.shape[2], k_BKSD.shape[2]
    if q_BHTD.device.type == "cpu" and seen <= _LONGEST_CHUNKED:
        chunked: Tensor = _chunked(q_BHTD, k_BKSD, v_BKSD, window or seen)
        return chunked
    grouped = q_BHTD.shape[1] != k_BKSD.shape[1]
    if window is not None and window < seen:
        mask_TS = _window_mask(tokens, seen, window, q_BHTD.device)
        return F.scaled_dot_product_attention(
            q_BHTD, k_BKSD, v_BKSD, attn_mask=mask_TS, enable_gqa=grouped
        )
    if tokens == seen:
        return F.scaled_dot_product_attention(
            q_BHTD, k_BKSD, v_BKSD, is_causal=True, enable_gqa=grouped
        )
    # is_causal would align the mask with the first key.
    from torch.nn.attention.bias import causal_lower_right  # noqa: PLC0415

    return F.scaled_dot_product_attention(
        q_BHTD, k_BKSD, v_BKSD, attn_mask=causal_lower_right(tokens, seen), enable_gqa=grouped
    )


def _window_mask(tokens: int, seen: int, window: int, device: torch.device) -> Tensor:
    """Return which keys (T, S) each query sees."""
    ones_TS = torch.ones(tokens, seen, dtype=torch.bool, device=device)
    return ones_TS.tril(seen - tokens).triu(seen - tokens - window + 1)


def _chunked(q_BHTD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, window: int) -> Tensor:
    return cast("Tensor", _ChunkedAttention.apply(q_BHTD, k_BKSD, v_BKSD, window))


class _ChunkedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        q_BHTD: Tensor,
        k_BKSD: Tensor,
        v_BKSD: Tensor,
        window: int,
    ) -> Tensor:
        batch, heads, tokens, size = q_BHTD.shape
        seen = k_BKSD.shape[2]
        groups = heads // k_BKSD.shape[1]
        q_NGTD = q_BHTD.reshape(-1, groups, tokens, size)
        k_NSD = k_BKSD.reshape(-1, seen, size)
        v_NSD = v_BKSD.reshape(-1, seen, size)
        out_NGTD = torch.empty_like(q_NGTD)
        mask = torch.full((_BLOCK_ROWS, _BLOCK_ROWS), float("-inf"), dtype=q_BHTD.dtype).triu(1)
        probabilities = []
        for start, end in _blocks(tokens):
            first, last = _keys(start, end, seen - tokens, window)
            p_NRS = _probabilities(q_NGTD[:, :, start:end], k_NSD[:, first:last], mask, window)
            out = torch.bmm(p_NRS, v_NSD[:, first:last])
            out_NGTD[:, :, start:end] = out.view(-1, groups, end - start, size)
            probabilities.append(p_NRS)
        ctx.window = window
        ctx.save_for_backward(q_NGTD, k_NSD, v_NSD, out_NGTD, *probabilities)
        return out_NGTD.view(batch, heads, tokens, size)

    @staticmethod
    def backward(ctx: Any, grad_BHTD: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # noqa: ANN401
        q_NGTD, k_NSD, v_NSD, out_NGTD, *probabilities = ctx.saved_tensors
        rows, groups, tokens, size = q_NGTD.shape
        scale = size**-0.5
        grad_NGTD = grad_BHTD.reshape(q_NGTD.shape)
        wide = torch.promote_types(q_NGTD.dtype, torch.float32)
        delta_NGT1 = (grad_NGTD.to(wide) * out_NGTD).sum(-1, keepdim=True).to(q_NGTD.dtype)
        dq_NGTD = torch.empty_like(q_NGTD)
        # Sums over blocks: in bfloat16 each addition would round.
        dk_NSD = torch.zeros_like(k_NSD, dtype=wide)
        dv_NSD = torch.zeros_like(v_NSD, dtype=wide)
        for (start, end), p_NRS in zip(_blocks(tokens), probabilities, strict=True):
            first, last = _keys(start, end, k_NSD.shape[1] - tokens, ctx.window)
            q_NRD = q_NGTD[:, :, start:end].reshape(rows, -1, size)
            grad_NRD = grad_NGTD[:, :, start:end].reshape(rows, -1, size)
            dv_NSD[:, first:last].add_(torch.bmm(p_NRS.transpose(1, 2), grad_NRD))
            ds_NRS = torch.bmm(grad_NRD, v_NSD[:, first:last].transpose(1, 2))
            ds_NRS.sub_(delta_NGT1[:, :, start:end].reshape(rows, -1, 1)).mul_(p_NRS)
            dq = torch.bmm(ds_NRS, k_NSD[:, first:last]).mul_(scale)
            dq_NGTD[:, :, start:end] = dq.view(rows, groups, end - start, size)
            dk_NSD[:, first:last].add_(torch.bmm(ds_NRS.transpose(1, 2), q_NRD), alpha=scale)
        batch, heads = grad_BHTD.shape[:2]
        kv_shape = (batch, heads // groups, -1, size)
        return (
            dq_NGTD.view(grad_BHTD.shape),
            dk_NSD.to(k_NSD.dtype).view(kv_shape),
            dv_NSD.to(v_NSD.dtype).view(kv_shape),
            None,
        )


def _blocks(tokens: int) -> list[tuple[int, int]]:
    """Return the first and the last row (exclusive) of each block."""
    return [(row, min(row + _BLOCK_ROWS, tokens)) for row in range(0, tokens, _BLOCK_ROWS)]


def _keys(start: int, end: int, before: int, window: int) -> tuple[int, int]:
    """Return the first and the last key (exclusive) that a block of rows sees, where all rows see
    `before` keys of older tokens.
    """
    return max(before + start - window + 1, 0), before + end


def _probabilities(q_NGRD: Tensor, k_NSD: Tensor, mask: Tensor, window: int) -> Tensor:
    """Return the probabilities (N, G·R, S) of a block of rows over the keys up to its last row."""
    count, groups, rows, size = q_NGRD.shape
    seen = k_NSD.shape[1]
    q_NRD = q_NGRD.reshape(count, groups * rows, size)
    scores_NRS = torch.bmm(q_NRD * size**-0.5, k_NSD.transpose(1, 2))
    scores = scores_NRS.view(count, groups, rows, seen)
    scores[..., seen - rows :].add_(mask[:rows, :rows])
    if window < seen:
        hidden = torch.ones(rows, seen, dtype=torch.bool).tril(seen - rows - window)
        scores.masked_fill_(hidden, float("-inf"))
    return torch.softmax(scores_NRS, dim=-1)

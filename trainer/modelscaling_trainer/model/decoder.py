"""A Llama-like decoder: RMSNorm, SwiGLU, rotary positions, grouped-query attention; with what
Mistral, Qwen2.5 and OLMo-2 do differently, where the shape says so.

Parameters have the names and meanings of Hugging Face's models without the prefix `model.`, so
weights can go either way, and logits agree. Weights are kept in float32 and turned to the compute
type where they are used; norms, the rotary tables and the loss are computed in float32, and norms
in float64 where that is the compute type.

A decoder may be one pipeline stage: some of the layers, under the same names.

Letters of the shapes: B batch, T tokens, E hidden size, H query heads, K key/value heads, D head
size, F feed-forward size, V vocabulary.
"""

# ruff: noqa: N803, N806 - tensors carry their shapes in their names

from __future__ import annotations

from functools import partial
from math import pi
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn

from modelscaling.layout import EMBEDDING, HEAD, is_adapter, stage_layers
from modelscaling_trainer.model.attention import causal_attention
from modelscaling_trainer.model.linear import Linear, projection
from modelscaling_trainer.model.recompute import keep_everything

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from modelscaling.shape import ModelShape, RopeScaling
    from modelscaling_trainer.model.recompute import Recompute


class Embedding(nn.Embedding):
    """A table of vectors."""

    def reset_parameters(self) -> None:
        """Draw nothing, as a Linear."""


class RMSNorm(nn.Module):
    """Division by the root mean square over the last axis, then a weight for each element."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self._epsilon = epsilon

    def forward(self, x_BTE: Tensor) -> Tensor:
        """Return the normed input in its own type."""
        wide = torch.promote_types(x_BTE.dtype, torch.float32)
        normed = F.rms_norm(x_BTE.to(wide), x_BTE.shape[-1:], self.weight.to(wide), self._epsilon)
        return normed.to(x_BTE.dtype)


class Attention(nn.Module):
    """Causal self-attention whose query heads share key and value heads in groups."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self._head_size = shape.head_size
        query, key = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        self.q_proj = projection(shape, "q_proj", shape.hidden_size, query, bias=shape.qkv_bias)
        self.k_proj = projection(shape, "k_proj", shape.hidden_size, key, bias=shape.qkv_bias)
        self.v_proj = projection(shape, "v_proj", shape.hidden_size, key, bias=shape.qkv_bias)
        self.o_proj = projection(shape, "o_proj", query, shape.hidden_size)
        self.q_norm: nn.Module | None = None
        self.k_norm: nn.Module | None = None
        if shape.qk_norm:
            self.q_norm = RMSNorm(query, shape.norm_epsilon)
            self.k_norm = RMSNorm(key, shape.norm_epsilon)
        # Replaced where the processes share the tokens (parallel/context.py) or the heads
        # (parallel/tensor.py).
        self.attend: Callable[[Tensor, Tensor, Tensor], Tensor] = (
            causal_attention
            if shape.window is None
            else partial(causal_attention, window=shape.window)
        )
        self.key_value_heads: Callable[[Tensor], Tensor] = _as_it_is

    def forward(self, x_BTE: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        """Return what each token gathers from itself and those before it."""
        q_BHTD = self._split_heads(_normed(self.q_proj(x_BTE), self.q_norm))
        cos_TD, sin_TD = cos_TD[: q_BHTD.shape[2]], sin_TD[: q_BHTD.shape[2]]
        q_BHTD = rotate(q_BHTD, cos_TD, sin_TD)
        k_BTE = _normed(self.k_proj(x_BTE), self.k_norm)
        k_BKTD = self._split_heads(self.key_value_heads(k_BTE))
        v_BKTD = self._split_heads(self.key_value_heads(self.v_proj(x_BTE)))
        out_BHTD = self.attend(q_BHTD, rotate(k_BKTD, cos_TD, sin_TD), v_BKTD)
        projected: Tensor = self.o_proj(out_BHTD.transpose(1, 2).flatten(2))
        return projected

    def _split_heads(self, x_BTE: Tensor) -> Tensor:
        return x_BTE.view(*x_BTE.shape[:2], -1, self._head_size).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        hidden, feed_forward = shape.hidden_size, shape.feed_forward_size
        self.gate_proj = projection(shape, "gate_proj", hidden, feed_forward)
        self.up_proj = projection(shape, "up_proj", hidden, feed_forward)
        self.down_proj = projection(shape, "down_proj", feed_forward, hidden)

    def forward(self, x_BTE: Tensor) -> Tensor:
        """Return down(silu(gate(x)) · up(x))."""
        h_BTF = F.silu(self.gate_proj(x_BTE)) * self.up_proj(x_BTE)
        projected: Tensor = self.down_proj(h_BTF)
        return projected


class Block(nn.Module):
    """One layer: attention and feed-forward, each added to its input; a norm is before either, or
    after it.
    """

    def __init__(self, shape: ModelShape, recompute: Recompute) -> None:
        super().__init__()
        self._norm_after = shape.norm_after
        if not shape.norm_after:
            self.input_layernorm = RMSNorm(shape.hidden_size, shape.norm_epsilon)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.norm_epsilon)
        self.mlp = FeedForward(shape)
        if shape.norm_after:
            self.post_feedforward_layernorm = RMSNorm(shape.hidden_size, shape.norm_epsilon)
        self._recompute = recompute

    def forward(self, x_BTE: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        """Return the residual stream after this layer."""
        return self._recompute(self._layer, x_BTE, cos_TD, sin_TD)

    def _layer(self, x_BTE: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        if self._norm_after:
            attended_BTE = self.self_attn(x_BTE, cos_TD, sin_TD)
            x_BTE = x_BTE + self.post_attention_layernorm(attended_BTE)
            after_BTE: Tensor = x_BTE + self.post_feedforward_layernorm(self.mlp(x_BTE))
            return after_BTE
        x_BTE = x_BTE + self.self_attn(self.input_layernorm(x_BTE), cos_TD, sin_TD)
        out_BTE: Tensor = x_BTE + self.mlp(self.post_attention_layernorm(x_BTE))
        return out_BTE


class Decoder(nn.Module):
    """Token ids to logits, or the part of that which one pipeline stage does."""

    def __init__(
        self,
        shape: ModelShape,
        *,
        compute_dtype: torch.dtype,
        stage: int = 0,
        stages: int = 1,
        recompute: Recompute = keep_everything,
    ) -> None:
        """Take the type of the matrix products; weights are float32 and not yet set."""
        super().__init__()
        self.shape = shape
        self.compute_dtype = compute_dtype
        self.is_first = stage == 0
        self.is_last = stage == stages - 1
        if self.is_first:
            self.embed_tokens = Embedding(shape.vocabulary_size, shape.hidden_size)
        self.layers = nn.ModuleDict(
            {
                str(index): Block(shape, recompute)
                for index in stage_layers(shape.layers, stages)[stage]
            }
        )
        if self.is_last:
            self.norm = RMSNorm(shape.hidden_size, shape.norm_epsilon)
            self.lm_head = Linear(shape.hidden_size, shape.vocabulary_size)
        self.between_layers: Callable[[Tensor], Tensor] = _as_it_is
        """Called with the residual stream after each layer; see interruption.py."""
        self.tie()
        self.register_buffer("cos_TD", torch.empty(0), persistent=False)
        self.register_buffer("sin_TD", torch.empty(0), persistent=False)
        self.cos_TD: Tensor
        self.sin_TD: Tensor
        self.set_rotary_tables()

    def blocks(self) -> Iterator[Block]:
        """Yield the layers of this stage, in their order."""
        for layer in self.layers.values():
            assert isinstance(layer, Block)
            yield layer

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.cos_TD.device

    def set_rotary_tables(self) -> None:
        """Compute the tables of the whole context; memory that was just given has none."""
        cos_TD, sin_TD = rotary_tables(self.shape)
        self.cos_TD = cos_TD.to(self.device, self.compute_dtype)
        self.sin_TD = sin_TD.to(self.device, self.compute_dtype)

    def tie(self) -> None:
        """Make the output head share the embedding's table, where the shape says so and both are
        here.
        """
        if self.shape.tied_embeddings and self.is_first and self.is_last:
            self.lm_head.weight = self.embed_tokens.weight

    def keep_all_but_adapters(self) -> None:
        """Compute no gradient of the weights that adapters are trained beside."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(is_adapter(name))

    def weights(self) -> dict[str, nn.Parameter]:
        """Return the parameters by the names of the whole model (modelscaling.layout)."""
        named = dict(self.named_parameters())
        if self.shape.tied_embeddings and self.is_last and not self.is_first:
            named[EMBEDDING] = named.pop(HEAD)
        return named

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, T, V) of the token after each, T ≤ contextLength.

        A stage that is not the first takes the residual stream (B, T, E) instead of token ids
        (B, T), and one that is not the last returns it.
        """
        x_BTE = self.embed_tokens(x).to(self.compute_dtype) if self.is_first else x
        for layer in self.blocks():
            x_BTE = self.between_layers(layer(x_BTE, self.cos_TD, self.sin_TD))
        if not self.is_last:
            return x_BTE
        logits_BTV: Tensor = self.lm_head(self.norm(x_BTE))
        return logits_BTV

    def compile_layers(self) -> None:
        """Have the layers compiled at their next use, one by one: all share one piece of code."""
        for layer in self.blocks():
            if self.device.type == "cpu":
                # Inductor would generate slower code than the products that it traces into. Not
                # a decorator: that imports the compiler, 5 s of start-up, in every run.
                layer.self_attn.attend = torch.compiler.disable(  # type: ignore[no-untyped-call]
                    layer.self_attn.attend
                )
            # Not layer.compile(): that takes the hooks of fully_shard in.
            layer.forward = torch.compile(layer.forward)  # type: ignore[method-assign]

    def loss_sum(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the sum over all tokens of the cross-entropy, nats, in float32."""
        return cross_entropy_sum(self(ids_BT), targets_BT)


def cross_entropy_sum(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Return the sum over all tokens of the cross-entropy, nats, in float32."""
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), reduction="sum")


def rotary_tables(shape: ModelShape) -> tuple[Tensor, Tensor]:
    """Return cosine and sine, float32 (T, D), of the angle of each element at each position."""
    exponents = torch.arange(0, shape.head_size, 2, dtype=torch.float32, device="cpu")
    frequencies = 1.0 / shape.rope_theta ** (exponents / shape.head_size)
    if shape.rope_scaling is not None:
        frequencies = _slowed(frequencies, shape.rope_scaling)
    positions = torch.arange(shape.context_length, dtype=torch.float32, device="cpu")
    angles = torch.outer(positions, frequencies)
    angles_TD = torch.cat((angles, angles), dim=-1)
    return angles_TD.cos(), angles_TD.sin()


def _slowed(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Return the frequencies, radians a token, that Llama 3.1 was extended with."""
    wavelengths = 2 * pi / frequencies
    turns = scaling.original_context_length / wavelengths
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = ((turns - scaling.low_freq_factor) / span).clamp(0.0, 1.0)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def rotate(x_BHTD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Return x with the pairs (i, i + D/2) of each head turned by their position's angle."""
    first, second = x_BHTD.chunk(2, dim=-1)
    return x_BHTD * cos_TD + torch.cat((-second, first), dim=-1) * sin_TD


def _normed(x_BTE: Tensor, norm: nn.Module | None) -> Tensor:
    if norm is None:
        return x_BTE
    normed_BTE: Tensor = norm(x_BTE)
    return normed_BTE


def _as_it_is(x_BTE: Tensor) -> Tensor:
    return x_BTE

"""The shape of a decoder, its exact parameter count and its FLOPs per token.

Sources: the count is that of a Llama-like decoder (RMSNorm, SwiGLU, RoPE, grouped-query
attention), written out in `parameters()`. The three conventions for FLOPs differ by up to 16 %
at long context, so every number names the one it used.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import isqrt


class FlopsConvention(StrEnum):
    """How the floating-point operations of a training step are counted, per token."""

    PALM = "PaLM"
    """6·N + 12·L·h·hd·T with N all parameters (Chowdhery et al. 2022, appendix B)."""

    NO_EMBEDDING = "NoEmbedding"
    """As PaLM, but N without the input embedding's table (torchtitan, NeMo). A tied table is the
    output head too, and stays in N."""

    CAUSAL = "Causal"
    """As NoEmbedding, with half of the attention term, which the causal mask leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The numbers that fix a decoder's function and size."""

    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward_size: int
    vocabulary_size: int
    context_length: int
    tied_embeddings: bool
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        """Refuse a shape that no decoder can have."""
        if self.heads % self.kv_heads:
            raise ValueError(
                f"kvHeads={self.kv_heads} does not divide heads={self.heads}; "
                f"set kvHeads to one of {divisors(self.heads)}"
            )
        if self.head_size % 2:
            raise ValueError(
                f"headSize={self.head_size} is odd; rotary embeddings turn pairs, make it even"
            )

    def embedding_parameters(self) -> int:
        """Return the size of one vocabulary table."""
        return self.vocabulary_size * self.hidden_size

    def parameters(self) -> int:
        """Return the exact number of trainable parameters."""
        query = self.heads * self.head_size
        key_value = self.kv_heads * self.head_size
        layer = (
            self.hidden_size * (2 * query + 2 * key_value)
            + 3 * self.hidden_size * self.feed_forward_size
            + 2 * self.hidden_size
        )
        tables = self.embedding_parameters() * (1 if self.tied_embeddings else 2)
        return tables + self.layers * layer + self.hidden_size

    def flops_per_token(self, convention: FlopsConvention = FlopsConvention.PALM) -> int:
        """Return the FLOPs of forward and backward for one token at the full context."""
        parameters = self.parameters()
        if convention is not FlopsConvention.PALM and not self.tied_embeddings:
            parameters -= self.embedding_parameters()
        attention = 12 * self.layers * self.heads * self.head_size * self.context_length
        if convention is FlopsConvention.CAUSAL:
            attention //= 2
        return 6 * parameters + attention


def divisors(number: int) -> list[int]:
    """Return the divisors of a positive integer in ascending order."""
    small = [n for n in range(1, isqrt(number) + 1) if number % n == 0]
    large = [number // n for n in reversed(small)]
    return small + large[small[-1] == large[0] :]

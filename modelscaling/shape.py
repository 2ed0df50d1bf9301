"""The shape of a decoder, its exact parameter count and its FLOPs per token.

Sources: the count is that of a Llama-like decoder (RMSNorm, SwiGLU, RoPE, grouped-query
attention), written out in `parameters()`. What other families do differently are fields of their
own whose defaults are Llama's: Qwen2.5's biases (Yang et al. 2024), OLMo-2's norms (Walsh et al.
2025), the rotary frequencies of Llama 3.1 (Grattafiori et al. 2024), Mistral's window (Jiang et
al. 2023). The three conventions for FLOPs differ by up to 16 % at long context, so every number
names the one it used.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from math import isqrt
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class FlopsConvention(StrEnum):
    """How the floating-point operations of a training step are counted, per token.

    None of them subtracts what a sliding window leaves out.
    """

    PALM = "PaLM"
    """6·N + 12·L·h·hd·T with N all parameters (Chowdhery et al. 2022, appendix B)."""

    NO_EMBEDDING = "NoEmbedding"
    """As PaLM, but N without the input embedding's table (torchtitan, NeMo). A tied table is the
    output head too, and stays in N."""

    CAUSAL = "Causal"
    """As NoEmbedding, with half of the attention term, which the causal mask leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are slowed for a longer context than a model was first trained at:
    the way that Hugging Face calls `llama3`.
    """

    factor: float
    """What the lowest frequencies are divided by."""
    low_freq_factor: float
    """Frequencies with fewer turns than this in the original context are divided whole."""
    high_freq_factor: float
    """Frequencies with more turns than this stay; those between are interpolated."""
    original_context_length: int
    """Tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Adapters: two small matrices beside each target (Hu et al. 2021), which alone are trained."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    """Matrices of a layer, by transformers' names such as q_proj."""

    @property
    def scale(self) -> float:
        """What the product of the two is multiplied by."""
        return self.alpha / self.rank


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
    qkv_bias: bool = False
    """Whether the products that make query, key and value add a bias (Qwen2.5)."""
    qk_norm: bool = False
    """Whether all heads' queries are normed as one vector, and all keys (OLMo-2)."""
    norm_after: bool = False
    """Whether attention and feed-forward are normed after and not before them (OLMo-2)."""
    rope_scaling: RopeScaling | None = None
    """None where rotary frequencies are those of rope_theta alone."""
    sliding_window: int | None = None
    """Tokens that a token sees, itself among them (Mistral 7B v0.1); None for all before it."""
    lora: Lora | None = None
    """None where all weights are trained."""

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

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> ModelShape:
        """Return the shape whose `asdict` was written as JSON; fields that it lacks are Llama's.

        Raises:
            TypeError, ValueError: it is no shape.
        """
        scaling, lora = fields.get("rope_scaling"), fields.get("lora")
        return cls(
            **{
                **fields,
                "rope_scaling": scaling and RopeScaling(**scaling),
                "lora": lora and Lora(**{**lora, "targets": tuple(lora["targets"])}),
            }
        )

    def differences(self, fields: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Return the fields that another shape, as for `from_fields`, has otherwise: its value, and
        this one's.

        Raises:
            TypeError, ValueError: it is no shape.
        """
        other, own = asdict(ModelShape.from_fields(fields)), asdict(self)
        return {name: (other[name], value) for name, value in own.items() if other[name] != value}

    @property
    def window(self) -> int | None:
        """The sliding window where it is shorter than the context, so that it leaves tokens out."""
        window = self.sliding_window
        return window if window is not None and window < self.context_length else None

    def embedding_parameters(self) -> int:
        """Return the size of one vocabulary table."""
        return self.vocabulary_size * self.hidden_size

    def parameters(self) -> int:
        """Return the exact number of parameters, without adapters."""
        query = self.heads * self.head_size
        key_value = self.kv_heads * self.head_size
        layer = (
            self.hidden_size * (2 * query + 2 * key_value)
            + 3 * self.hidden_size * self.feed_forward_size
            + 2 * self.hidden_size
            + (query + 2 * key_value) * self.qkv_bias
            + (query + key_value) * self.qk_norm
        )
        tables = self.embedding_parameters() * (1 if self.tied_embeddings else 2)
        return tables + self.layers * layer + self.hidden_size

    def adapter_parameters(self) -> int:
        """Return the exact number of parameters of the adapters, which alone are trained where
        there are any.
        """
        if self.lora is None:
            return 0
        query, key_value = self.heads * self.head_size, self.kv_heads * self.head_size
        ends = {
            "q_proj": self.hidden_size + query,
            "k_proj": self.hidden_size + key_value,
            "v_proj": self.hidden_size + key_value,
            "o_proj": self.hidden_size + query,
        }
        feed_forward = self.hidden_size + self.feed_forward_size
        each = sum(ends.get(target, feed_forward) for target in self.lora.targets)
        return self.layers * self.lora.rank * each

    def flops_per_token(self, convention: FlopsConvention = FlopsConvention.PALM) -> int:
        """Return the FLOPs of forward and backward for one token at the full context; weights that
        adapters are trained beside have no gradient, a third of their own.
        """
        parameters = self.parameters()
        if convention is not FlopsConvention.PALM and not self.tied_embeddings:
            parameters -= self.embedding_parameters()
        attention = 12 * self.layers * self.heads * self.head_size * self.context_length
        if convention is FlopsConvention.CAUSAL:
            attention //= 2
        return (4 if self.lora else 6) * parameters + 6 * self.adapter_parameters() + attention


def divisors(number: int) -> list[int]:
    """Return the divisors of a positive integer in ascending order."""
    small = [n for n in range(1, isqrt(number) + 1) if number % n == 0]
    large = [number // n for n in reversed(small)]
    return small + large[small[-1] == large[0] :]

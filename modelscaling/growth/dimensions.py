"""Which dimension of the model each axis of each weight is, and what new entries along it are so
that the model computes what it did.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

from modelscaling.growth.axis import Fill

if TYPE_CHECKING:
    from modelscaling.shape import ModelShape


class Dimension(Enum):
    """A dimension that weights have in common."""

    VOCABULARY = auto()
    HIDDEN = auto()
    QUERY = auto()
    """Query heads × head size."""
    KEY = auto()
    """Key/value heads × head size."""
    FEED_FORWARD = auto()

    def length(self, shape: ModelShape) -> int:
        """Return its length in a model."""
        match self:
            case Dimension.VOCABULARY:
                return shape.vocabulary_size
            case Dimension.HIDDEN:
                return shape.hidden_size
            case Dimension.QUERY:
                return shape.heads * shape.head_size
            case Dimension.KEY:
                return shape.kv_heads * shape.head_size
            case Dimension.FEED_FORWARD:
                return shape.feed_forward_size


_AXES = {
    "embed_tokens.weight": (Dimension.VOCABULARY, Dimension.HIDDEN),
    "input_layernorm.weight": (Dimension.HIDDEN,),
    "q_proj.weight": (Dimension.QUERY, Dimension.HIDDEN),
    "q_proj.bias": (Dimension.QUERY,),
    "q_norm.weight": (Dimension.QUERY,),
    "k_proj.weight": (Dimension.KEY, Dimension.HIDDEN),
    "k_proj.bias": (Dimension.KEY,),
    "k_norm.weight": (Dimension.KEY,),
    "v_proj.weight": (Dimension.KEY, Dimension.HIDDEN),
    "v_proj.bias": (Dimension.KEY,),
    "o_proj.weight": (Dimension.HIDDEN, Dimension.QUERY),
    "post_attention_layernorm.weight": (Dimension.HIDDEN,),
    "gate_proj.weight": (Dimension.FEED_FORWARD, Dimension.HIDDEN),
    "up_proj.weight": (Dimension.FEED_FORWARD, Dimension.HIDDEN),
    "down_proj.weight": (Dimension.HIDDEN, Dimension.FEED_FORWARD),
    "post_feedforward_layernorm.weight": (Dimension.HIDDEN,),
    "norm.weight": (Dimension.HIDDEN,),
    "lm_head.weight": (Dimension.VOCABULARY, Dimension.HIDDEN),
}
"""The dimensions of a weight's axes, by the end of its name."""

INTO_RESIDUAL = ("o_proj.weight", "down_proj.weight")
"""What a layer adds to the residual stream with, by the end of its name."""
NORMS_INTO_RESIDUAL = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
"""The same where norms come after it. A norm of what is 0 would multiply its gradient by
1 / √epsilon, so what is to be silent is the norm."""
_WRITERS = ("embed_tokens.weight", *INTO_RESIDUAL)


def axes_of(name: str) -> tuple[Dimension, ...]:
    """Return the dimensions of a weight's axes."""
    for end, axes in _AXES.items():
        if name == end or name.endswith(f".{end}"):
            return axes
    raise ValueError(
        f"weight {name!r} has dimensions that growth does not know; it knows {', '.join(_AXES)}"
    )


def fill_of(name: str, dimension: Dimension) -> Fill:
    """Return what new entries of a weight are along a dimension.

    What writes to the residual stream is 0, so that nothing new is heard; what reads is free.
    """
    if dimension is Dimension.VOCABULARY:
        return Fill.MEAN
    return Fill.ZERO if name.endswith(_WRITERS) else Fill.FRESH

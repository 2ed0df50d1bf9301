"""An entry of `spec.model.growth.schedule`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelscaling.api.base import ApiModel, Decimal
from modelscaling.api.dimension import (
    FeedForwardSize,
    Heads,
    HeadSize,
    HiddenSize,
    Layers,
    VocabularySize,
)
from modelscaling.quantity import QUANTITY_PATTERN

# The schema has the pattern, and no CEL rule: the API server takes the cost of matching a text
# of 3 MB times the entries of a list, and refuses the CRD.
_Quantity = Annotated[
    int | str,
    Field(
        json_schema_extra={"x-kubernetes-int-or-string": True, "pattern": QUANTITY_PATTERN},
        union_mode="left_to_right",
    ),
]


class GrowthStageSpec(ApiModel):
    """Schedule's entries each say at how many tokens the model grows, and which fields of
    spec.model are others from then on; the rest stays as the entries before have left it.

    contextLength is not among them: the number of steps follows from it.
    """

    tokens: _Quantity
    """Tokens is how many tokens the run has trained on when the model grows, as an integer or with
    the suffix k, M, B or T. It is above that of the entry before and below training.tokens."""

    parameters: _Quantity | None = None
    """Parameters is the size from then on, where spec.model.parameters says it before."""

    layers: Layers | None = None
    """Layers is the number of transformer blocks from then on."""

    hidden_size: HiddenSize | None = None
    """HiddenSize is the width of the residual stream from then on. As headSize defaults to
    hiddenSize / heads, heads grows beside it, or headSize is given."""

    heads: Heads | None = None
    """Heads is the number of query heads from then on."""

    kv_heads: Heads | None = None
    """KvHeads is the number of key and value heads from then on."""

    head_size: HeadSize | None = None
    """HeadSize is the width of one head from then on; only mode Stack changes it."""

    feed_forward_size: FeedForwardSize | None = None
    """FeedForwardSize is the width of the feed-forward part from then on."""

    vocabulary_size: VocabularySize | None = None
    """VocabularySize is the number of token ids from then on."""

    rope_theta: Decimal | None = None
    """RopeTheta is the base of the rotary wavelengths from then on; only mode Stack changes it."""

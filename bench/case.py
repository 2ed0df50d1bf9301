"""What is trained: two small decoders, and the samples of a step.

S and XS are the models of examples/stdlib-20m.yaml and examples/stdlib-3m.yaml.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from modelscaling.shape import ModelShape

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model and its global batch."""

    name: str
    shape: ModelShape
    batch: int
    """Samples of a step, over all processes."""

    @property
    def flops(self) -> int:
        """Of a step, by the PaLM convention."""
        return self.batch * self.shape.context_length * self.shape.flops_per_token()


def model_spec(shape: ModelShape) -> Mapping[str, object]:
    """Return the `spec.model` that declares a shape of Llama's family."""
    return {
        "layers": shape.layers,
        "hiddenSize": shape.hidden_size,
        "heads": shape.heads,
        "kvHeads": shape.kv_heads,
        "headSize": shape.head_size,
        "feedForwardSize": shape.feed_forward_size,
        "vocabularySize": shape.vocabulary_size,
        "contextLength": shape.context_length,
        "tiedEmbeddings": shape.tied_embeddings,
    }


def _shape(layers: int, hidden: int, feed_forward: int, context: int) -> ModelShape:
    return ModelShape(
        layers=layers,
        hidden_size=hidden,
        heads=8,
        kv_heads=4,
        head_size=hidden // 8,
        feed_forward_size=feed_forward,
        vocabulary_size=256,
        context_length=context,
        tied_embeddings=True,
    )


S = Case(name="S", shape=_shape(8, 512, 1536, 512), batch=8)
XS = Case(name="XS", shape=_shape(4, 256, 768, 256), batch=16)
CASES = {case.name: case for case in (S, XS)}
ELASTIC_CASES = {"S": replace(S, batch=6), "XS": replace(XS, batch=12)}
"""With batches that two processes can divide, and three."""

"""Small decoders for tests, with the first weights of a run in them."""

from __future__ import annotations

from typing import Any

import torch

from modelscaling.layout import layout
from modelscaling.mesh import Mesh
from modelscaling.shape import ModelShape
from modelscaling_trainer.model.decoder import Decoder
from modelscaling_trainer.model.initial_weights import set_initial_weights
from modelscaling_trainer.shard import Shard


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


def make_decoder(shape: ModelShape, *, seed: int = 0, **options: Any) -> Decoder:
    """Return a decoder, or one of its pipeline stages, that a run of this seed begins with."""
    decoder = Decoder(shape, **{"compute_dtype": torch.float32, **options})
    set_initial_weights(whole_weights(decoder), seed=seed, layers=shape.layers)
    return decoder


def whole_weights(decoder: Decoder) -> dict[str, Shard]:
    """Return the weights of a decoder, or of one of its stages, none of them cut."""
    pieces = layout(decoder.shape, Mesh(), 0)
    return {
        name: Shard(parameter.detach(), pieces[name])
        for name, parameter in decoder.weights().items()
    }

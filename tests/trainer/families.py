"""The families that the built-in decoder computes, as changes to a shape, and the model that
transformers makes of such a shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from modelscaling.shape import RopeScaling

if TYPE_CHECKING:
    from torch import nn

    from modelscaling.shape import ModelShape

_SCALING = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context_length=64
)
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-3.1": {"rope_scaling": _SCALING, "rope_theta": 100.0},
    "mistral": {"sliding_window": 7},
    "qwen2.5": {"qkv_bias": True, "rope_theta": 1e6, "norm_epsilon": 1e-6},
    "olmo-2": {"qk_norm": True, "norm_after": True, "norm_epsilon": 1e-6},
}


def make_transformers_model(shape: ModelShape) -> Any:
    """Return transformers' model of a shape, with weights of its own."""
    fields: dict[str, Any] = {
        "vocab_size": shape.vocabulary_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.feed_forward_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "max_position_embeddings": shape.context_length,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "tie_word_embeddings": shape.tied_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if shape.rope_scaling is not None:
        scaling = shape.rope_scaling
        fields["rope_parameters"] |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context_length,
        }
    if shape.sliding_window is not None:
        return MistralForCausalLM(MistralConfig(**fields, sliding_window=shape.sliding_window))
    if shape.qkv_bias:
        return Qwen2ForCausalLM(Qwen2Config(**fields))
    if shape.norm_after:
        return Olmo2ForCausalLM(Olmo2Config(**fields))
    return LlamaForCausalLM(LlamaConfig(**fields))


def their_name(name: str) -> str:
    """Return what transformers calls a weight."""
    return name if name == "lm_head.weight" else f"model.{name}"


@torch.no_grad()
def draw(model: nn.Module) -> None:
    """Give every weight a value that matters, biases and norms too."""
    for parameter in model.parameters():
        parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.1)

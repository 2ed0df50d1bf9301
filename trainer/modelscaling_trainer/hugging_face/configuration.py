"""A model's config.json: to a shape, and from one.

What the decoder does not compute is refused by its name: a directory that loads is computed as
transformers computes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelscaling.shape import ModelShape, RopeScaling
from modelscaling_trainer.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """A kind of model of transformers, and what it does that Llama does not."""

    model_type: str
    architecture: str
    qkv_bias: bool = False
    qk_norm: bool = False
    norm_after: bool = False


_LLAMA = _Family(model_type="llama", architecture="LlamaForCausalLM")
_MISTRAL = _Family(model_type="mistral", architecture="MistralForCausalLM")
_QWEN_2 = _Family(model_type="qwen2", architecture="Qwen2ForCausalLM", qkv_bias=True)
_OLMO_2 = _Family(
    model_type="olmo2", architecture="Olmo2ForCausalLM", qk_norm=True, norm_after=True
)
_FAMILIES = {family.model_type: family for family in (_LLAMA, _MISTRAL, _QWEN_2, _OLMO_2)}

_SIZES = {
    "num_hidden_layers": "layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "heads",
    "intermediate_size": "feed_forward_size",
    "vocab_size": "vocabulary_size",
    "max_position_embeddings": "context_length",
}
"""Fields that are there under another name."""
_EXPECTED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "quantization_config": None,
}
"""What other fields have to be where they are given."""
_MISTRAL_WINDOW = 4096
"""Tokens, where a Mistral's configuration does not say."""


def shape_from(config: Mapping[str, Any], *, path: str) -> ModelShape:
    """Return the shape that a config.json stands for; `path` is for messages.

    Raises:
        ConfigurationError: it is of a model that the decoder does not compute, or incomplete.
    """
    problems = [*_problems(config)]
    if problems:
        raise ConfigurationError("UnsupportedModel", f"{path}: {'; '.join(problems)}")
    family = _FAMILIES[config["model_type"]]
    sizes = {ours: config[theirs] for theirs, ours in _SIZES.items()}
    window = config.get("sliding_window", _MISTRAL_WINDOW) if family is _MISTRAL else None
    try:
        return ModelShape(
            **sizes,
            kv_heads=config.get("num_key_value_heads") or sizes["heads"],
            head_size=config.get("head_dim") or sizes["hidden_size"] // sizes["heads"],
            tied_embeddings=config.get("tie_word_embeddings", False),
            norm_epsilon=config["rms_norm_eps"],
            rope_theta=float(_rope(config).get("rope_theta", config.get("rope_theta", 10_000.0))),
            rope_scaling=_rope_scaling(config),
            qkv_bias=family.qkv_bias,
            qk_norm=family.qk_norm,
            norm_after=family.norm_after,
            sliding_window=window,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError("UnsupportedModel", f"{path}: {error!r}") from error


def config_from(shape: ModelShape, *, dtype: str = "float32") -> dict[str, Any]:
    """Return the config.json of a shape, in the words that transformers 4 and 5 both understand;
    `dtype` is torch's name of what its weights are stored as.

    Raises:
        ConfigurationError: no model of transformers is such a shape.
    """
    family = _family_of(shape)
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **{theirs: getattr(shape, ours) for theirs, ours in _SIZES.items()},
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": shape.norm_epsilon,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": shape.tied_embeddings,
        "torch_dtype": dtype,
        # What transformers would set in their place are ids of other tokenizers.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if shape.rope_scaling is not None:
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": shape.rope_scaling.factor,
            "low_freq_factor": shape.rope_scaling.low_freq_factor,
            "high_freq_factor": shape.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": shape.rope_scaling.original_context_length,
        }
    if family is _MISTRAL:
        config["sliding_window"] = shape.sliding_window
    return config


def _family_of(shape: ModelShape) -> _Family:
    does = (shape.qkv_bias, shape.qk_norm, shape.norm_after)
    # transformers' Llama insists on heads that make up the hidden size, its Mistral does not.
    needs_mistral = shape.sliding_window is not None or shape.hidden_size % shape.heads != 0
    for family in (_MISTRAL if needs_mistral else _LLAMA, _QWEN_2, _OLMO_2):
        if does == (family.qkv_bias, family.qk_norm, family.norm_after) and (
            family is _MISTRAL or shape.sliding_window is None
        ):
            return family
    raise ConfigurationError(
        "UnsupportedModel",
        f"no model of transformers has qkv_bias={shape.qkv_bias}, qk_norm={shape.qk_norm}, "
        f"norm_after={shape.norm_after} and sliding_window={shape.sliding_window} together",
    )


def _problems(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what forbids to load a model, each with what was expected."""
    kind = config.get("model_type")
    if kind not in _FAMILIES:
        yield f"model_type is {kind!r}, expected one of {', '.join(_FAMILIES)}"
        return
    architecture = _FAMILIES[kind].architecture
    if config.get("architectures") not in (None, [architecture]):
        yield f"architectures is {config['architectures']!r}, expected [{architecture!r}]"
    for name in (*_SIZES, "rms_norm_eps"):
        if name not in config:
            yield f"{name} is missing"
    for name, expected in _EXPECTED.items():
        if config.get(name, expected) != expected:
            yield f"{name} is {config[name]!r}, and only {expected!r} is supported"
    if set(config.get("layer_types") or ()) - {"full_attention"}:
        yield f"layer_types is {config['layer_types']!r}, and only 'full_attention' is supported"
    if _rope_type(config) not in ("default", "llama3"):
        yield f"rope_type is {_rope_type(config)!r}, and only 'default' and 'llama3' are supported"
    if (turned := _rope(config).get("partial_rotary_factor", 1.0)) != 1.0:
        yield f"partial_rotary_factor is {turned!r}, and only 1.0 is supported"


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what is said of rotary positions: transformers 4 and 5 have other names for it."""
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _rope_type(config: Mapping[str, Any]) -> object:
    rope = _rope(config)
    return rope.get("rope_type", rope.get("type", "default"))


def _rope_scaling(config: Mapping[str, Any]) -> RopeScaling | None:
    if _rope_type(config) == "default":
        return None
    rope = _rope(config)
    return RopeScaling(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_context_length=rope["original_max_position_embeddings"],
    )

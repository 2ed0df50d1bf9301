from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import AutoConfig

from modelscaling.preset import PRESETS
from modelscaling_trainer.errors import ConfigurationError
from modelscaling_trainer.hugging_face.configuration import config_from, shape_from
from tests.trainer.decoders import make_shape
from tests.trainer.families import FAMILIES, make_transformers_model

_OLD_QWEN: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
"""As Qwen2.5-0.5B is published."""


@pytest.mark.parametrize("preset", PRESETS)
def test_a_shape_is_its_own_after_it_was_written_and_read(preset: str) -> None:
    shape = PRESETS[preset]

    assert shape_from(config_from(shape), path="config.json") == shape


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_writes_of_a_shape_is_that_shape(family: str) -> None:
    shape = make_shape(**FAMILIES[family])
    written = make_transformers_model(shape).config.to_dict()

    assert shape_from({"model_type": written["model_type"], **written}, path="config.json") == shape


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_of_a_shape_what_it_has_itself(family: str) -> None:
    shape = make_shape(**FAMILIES[family])
    config = config_from(shape)

    read = AutoConfig.for_model(**config)

    theirs = make_transformers_model(shape).config
    assert read.rope_parameters == theirs.rope_parameters
    assert read.num_key_value_heads == theirs.num_key_value_heads
    assert read.head_dim == theirs.head_dim
    assert getattr(read, "sliding_window", None) == getattr(theirs, "sliding_window", None)


def test_a_published_configuration_of_transformers_4_is_the_preset() -> None:
    assert shape_from(_OLD_QWEN, path="config.json") == PRESETS["qwen2.5-0.5b"]


def test_heads_that_do_not_make_up_the_hidden_size_are_a_mistrals() -> None:
    shape = make_shape(hidden_size=36, heads=8, kv_heads=2)

    config = config_from(shape)

    assert config["architectures"] == ["MistralForCausalLM"]
    assert shape_from(config, path="config.json") == shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2', expected one of llama, mistral, qwen2, ol"),
        ({"architectures": ["Qwen2Model"]}, r"architectures is \['Qwen2Model'\], expected \['Qwen"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', and only 'silu' is supported"),
        ({"attention_bias": True}, "attention_bias is True, and only False is supported"),
        ({"mlp_bias": True}, "mlp_bias is True, and only False is supported"),
        ({"use_sliding_window": True}, "use_sliding_window is True, and only False is supported"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type is 'yarn', and only 'defau"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor is 0.5",
        ),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}, and only None"),
        ({"layer_types": ["sliding_attention"]}, "layer_types is .*only 'full_attention'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"num_key_value_heads": 3}, "kvHeads=3 does not divide heads=14"),
        ({"hidden_size": None}, "hidden_size is missing"),
    ],
)
def test_what_the_decoder_does_not_compute_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    changed = {name: value for name, value in (_OLD_QWEN | changes).items() if value is not None}

    with pytest.raises(ConfigurationError, match=f"config.json: .*{message}"):
        shape_from(changed, path="config.json")


def test_a_shape_that_no_model_of_transformers_has_is_refused() -> None:
    shape = replace(PRESETS["olmo-2-1b"], qkv_bias=True)

    with pytest.raises(ConfigurationError, match="no model of transformers has qkv_bias=True"):
        config_from(shape)

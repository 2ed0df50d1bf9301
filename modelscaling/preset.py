"""Public models by name: the shapes that `spec.model.preset` stands for.

The built-in decoder computes each exactly. The numbers are those of the models' published
`config.json`; the context length is the one they were trained at, before what extended it for
inference, and may be overridden.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from modelscaling.shape import ModelShape, RopeScaling

_LLAMA_2 = partial(
    ModelShape,
    head_size=128,
    vocabulary_size=32000,
    context_length=4096,
    tied_embeddings=False,
)
_LLAMA_3 = partial(
    ModelShape,
    vocabulary_size=128256,
    context_length=8192,
    tied_embeddings=False,
    rope_theta=500_000.0,
)
_LLAMA_3_8B = _LLAMA_3(
    layers=32, hidden_size=4096, heads=32, kv_heads=8, head_size=128, feed_forward_size=14336
)
_LLAMA_3_70B = _LLAMA_3(
    layers=80, hidden_size=8192, heads=64, kv_heads=8, head_size=128, feed_forward_size=28672
)
_LLAMA_3_1_SCALING = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context_length=8192
)
_LLAMA_3_2 = partial(
    ModelShape,
    vocabulary_size=128256,
    context_length=8192,
    tied_embeddings=True,
    rope_theta=500_000.0,
    rope_scaling=replace(_LLAMA_3_1_SCALING, factor=32.0),
)
_MISTRAL_7B = partial(
    ModelShape,
    layers=32,
    hidden_size=4096,
    heads=32,
    kv_heads=8,
    head_size=128,
    feed_forward_size=14336,
    tied_embeddings=False,
)
_QWEN_2_5 = partial(ModelShape, context_length=32768, rope_theta=1e6, qkv_bias=True)
_SMALL_QWEN_2_5 = partial(
    _QWEN_2_5, vocabulary_size=151936, tied_embeddings=True, norm_epsilon=1e-6
)
_LARGE_QWEN_2_5 = partial(
    _QWEN_2_5, vocabulary_size=152064, tied_embeddings=False, norm_epsilon=1e-5
)
_OLMO_2 = partial(
    ModelShape,
    head_size=128,
    vocabulary_size=100352,
    context_length=4096,
    tied_embeddings=False,
    rope_theta=500_000.0,
    norm_epsilon=1e-6,
    qk_norm=True,
    norm_after=True,
)
_SMOLLM_2 = partial(
    ModelShape, head_size=64, vocabulary_size=49152, context_length=8192, tied_embeddings=True
)

PRESETS: dict[str, ModelShape] = {
    "llama-2-7b": _LLAMA_2(
        layers=32, hidden_size=4096, heads=32, kv_heads=32, feed_forward_size=11008
    ),
    "llama-2-13b": _LLAMA_2(
        layers=40, hidden_size=5120, heads=40, kv_heads=40, feed_forward_size=13824
    ),
    "llama-2-70b": _LLAMA_2(
        layers=80, hidden_size=8192, heads=64, kv_heads=8, feed_forward_size=28672
    ),
    "tinyllama-1.1b": ModelShape(
        layers=22,
        hidden_size=2048,
        heads=32,
        kv_heads=4,
        head_size=64,
        feed_forward_size=5632,
        vocabulary_size=32000,
        context_length=2048,
        tied_embeddings=False,
    ),
    "llama-3-8b": _LLAMA_3_8B,
    "llama-3-70b": _LLAMA_3_70B,
    "llama-3.1-8b": replace(_LLAMA_3_8B, rope_scaling=_LLAMA_3_1_SCALING),
    "llama-3.1-70b": replace(_LLAMA_3_70B, rope_scaling=_LLAMA_3_1_SCALING),
    "llama-3.1-405b": _LLAMA_3(
        layers=126,
        hidden_size=16384,
        heads=128,
        kv_heads=8,
        head_size=128,
        feed_forward_size=53248,
        rope_scaling=_LLAMA_3_1_SCALING,
    ),
    "llama-3.2-1b": _LLAMA_3_2(
        layers=16, hidden_size=2048, heads=32, kv_heads=8, head_size=64, feed_forward_size=8192
    ),
    "llama-3.2-3b": _LLAMA_3_2(
        layers=28, hidden_size=3072, heads=24, kv_heads=8, head_size=128, feed_forward_size=8192
    ),
    "mistral-7b-v0.1": _MISTRAL_7B(vocabulary_size=32000, context_length=8192, sliding_window=4096),
    "mistral-7b-v0.3": _MISTRAL_7B(vocabulary_size=32768, context_length=32768, rope_theta=1e6),
    "mistral-nemo-base-2407": ModelShape(
        layers=40,
        hidden_size=5120,
        heads=32,
        kv_heads=8,
        head_size=128,
        feed_forward_size=14336,
        vocabulary_size=131072,
        context_length=131072,
        tied_embeddings=False,
        rope_theta=1e6,
    ),
    "mistral-small-24b-base-2501": ModelShape(
        layers=40,
        hidden_size=5120,
        heads=32,
        kv_heads=8,
        head_size=128,
        feed_forward_size=32768,
        vocabulary_size=131072,
        context_length=32768,
        tied_embeddings=False,
        rope_theta=1e8,
    ),
    "qwen2.5-0.5b": _SMALL_QWEN_2_5(
        layers=24, hidden_size=896, heads=14, kv_heads=2, head_size=64, feed_forward_size=4864
    ),
    "qwen2.5-1.5b": _SMALL_QWEN_2_5(
        layers=28, hidden_size=1536, heads=12, kv_heads=2, head_size=128, feed_forward_size=8960
    ),
    "qwen2.5-3b": _SMALL_QWEN_2_5(
        layers=36, hidden_size=2048, heads=16, kv_heads=2, head_size=128, feed_forward_size=11008
    ),
    "qwen2.5-7b": _LARGE_QWEN_2_5(
        layers=28,
        hidden_size=3584,
        heads=28,
        kv_heads=4,
        head_size=128,
        feed_forward_size=18944,
        norm_epsilon=1e-6,
    ),
    "qwen2.5-14b": _LARGE_QWEN_2_5(
        layers=48, hidden_size=5120, heads=40, kv_heads=8, head_size=128, feed_forward_size=13824
    ),
    "qwen2.5-32b": _LARGE_QWEN_2_5(
        layers=64, hidden_size=5120, heads=40, kv_heads=8, head_size=128, feed_forward_size=27648
    ),
    "qwen2.5-72b": _LARGE_QWEN_2_5(
        layers=80, hidden_size=8192, heads=64, kv_heads=8, head_size=128, feed_forward_size=29568
    ),
    "olmo-2-1b": _OLMO_2(
        layers=16, hidden_size=2048, heads=16, kv_heads=16, feed_forward_size=8192
    ),
    "olmo-2-7b": _OLMO_2(
        layers=32, hidden_size=4096, heads=32, kv_heads=32, feed_forward_size=11008
    ),
    "olmo-2-13b": _OLMO_2(
        layers=40, hidden_size=5120, heads=40, kv_heads=40, feed_forward_size=13824
    ),
    "olmo-2-32b": _OLMO_2(
        layers=64, hidden_size=5120, heads=40, kv_heads=8, feed_forward_size=27648
    ),
    "smollm2-135m": _SMOLLM_2(
        layers=30,
        hidden_size=576,
        heads=9,
        kv_heads=3,
        feed_forward_size=1536,
        rope_theta=100_000.0,
    ),
    "smollm2-360m": _SMOLLM_2(
        layers=32,
        hidden_size=960,
        heads=15,
        kv_heads=5,
        feed_forward_size=2560,
        rope_theta=100_000.0,
    ),
    "smollm2-1.7b": _SMOLLM_2(
        layers=24,
        hidden_size=2048,
        heads=32,
        kv_heads=32,
        feed_forward_size=8192,
        rope_theta=130_000.0,
    ),
}

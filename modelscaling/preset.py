"""Public models by name: the shapes that `spec.model.preset` stands for.

Each is a Llama-like decoder that the built-in model computes exactly. The numbers are those of
the models' published `config.json`; the context length is the one they were trained at and may
be overridden.
"""

from __future__ import annotations

from modelscaling.shape import ModelShape

PRESETS: dict[str, ModelShape] = {
    "llama-2-7b": ModelShape(
        layers=32,
        hidden_size=4096,
        heads=32,
        kv_heads=32,
        head_size=128,
        feed_forward_size=11008,
        vocabulary_size=32000,
        context_length=4096,
        tied_embeddings=False,
    ),
    "llama-2-13b": ModelShape(
        layers=40,
        hidden_size=5120,
        heads=40,
        kv_heads=40,
        head_size=128,
        feed_forward_size=13824,
        vocabulary_size=32000,
        context_length=4096,
        tied_embeddings=False,
    ),
    "llama-3-8b": ModelShape(
        layers=32,
        hidden_size=4096,
        heads=32,
        kv_heads=8,
        head_size=128,
        feed_forward_size=14336,
        vocabulary_size=128256,
        context_length=8192,
        tied_embeddings=False,
        rope_theta=500_000.0,
    ),
    "llama-3.1-8b": ModelShape(
        layers=32,
        hidden_size=4096,
        heads=32,
        kv_heads=8,
        head_size=128,
        feed_forward_size=14336,
        vocabulary_size=128256,
        context_length=8192,
        tied_embeddings=False,
        rope_theta=500_000.0,
    ),
    "llama-3.1-70b": ModelShape(
        layers=80,
        hidden_size=8192,
        heads=64,
        kv_heads=8,
        head_size=128,
        feed_forward_size=28672,
        vocabulary_size=128256,
        context_length=8192,
        tied_embeddings=False,
        rope_theta=500_000.0,
    ),
    "llama-3.2-1b": ModelShape(
        layers=16,
        hidden_size=2048,
        heads=32,
        kv_heads=8,
        head_size=64,
        feed_forward_size=8192,
        vocabulary_size=128256,
        context_length=8192,
        tied_embeddings=True,
        rope_theta=500_000.0,
    ),
    "mistral-7b-v0.1": ModelShape(
        layers=32,
        hidden_size=4096,
        heads=32,
        kv_heads=8,
        head_size=128,
        feed_forward_size=14336,
        vocabulary_size=32000,
        context_length=8192,
        tied_embeddings=False,
    ),
    "smollm2-135m": ModelShape(
        layers=30,
        hidden_size=576,
        heads=9,
        kv_heads=3,
        head_size=64,
        feed_forward_size=1536,
        vocabulary_size=49152,
        context_length=8192,
        tied_embeddings=True,
        rope_theta=100_000.0,
    ),
}

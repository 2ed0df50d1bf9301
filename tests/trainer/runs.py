"""Runs for tests: a tiny model on a small text, and changes to it by dotted path."""

from __future__ import annotations

import copy
import random
from typing import TYPE_CHECKING, Any

from modelscaling.configuration import RunConfiguration

if TYPE_CHECKING:
    from pathlib import Path

_TINY: dict[str, Any] = {
    "model": {
        "layers": 2,
        "hidden_size": 32,
        "heads": 4,
        "kv_heads": 2,
        "head_size": 8,
        "feed_forward_size": 64,
        "vocabulary_size": 256,
        "context_length": 32,
        "tied_embeddings": True,
    },
    "data": {"path": "", "tokenizer": "Byte", "validation_fraction": 0.1},
    "training": {
        "total_steps": 50,
        "global_batch_size": 12,
        "micro_batch_size": None,
        "precision": "Float32",
        "seed": 7,
        "compile": "Never",
        "activation_checkpointing": "None",
        "validate_every_steps": 0,
    },
    "optimizer": {
        "learning_rate": 3e-4,
        "schedule": "Cosine",
        "warmup_steps": 5,
        "decay_steps": 45,
        "minimum_learning_rate": 3e-5,
        "weight_decay": 0.1,
        "beta1": 0.9,
        "beta2": 0.95,
        "epsilon": 1e-8,
        "gradient_clip_norm": 1.0,
    },
    "checkpoint": None,
}


def make_run(data: Path | str, **changes: Any) -> RunConfiguration:
    """Return the tiny run on some data, with changes such as `training__seed=3`."""
    run = copy.deepcopy(_TINY)
    run["data"]["path"] = str(data)
    for path, value in changes.items():
        *parents, last = path.split("__")
        level = run
        for parent in parents:
            level = level[parent]
        level[last] = value
    return RunConfiguration.model_validate(run)


def write_text(directory: Path, *, words: int = 4000) -> Path:
    """Write a text that a model can learn something from, and return its path."""
    draw = random.Random(0)
    vocabulary = ["scale", "model", "train", "step", "loss", "token", "pod", "group"]
    text = " ".join(draw.choice(vocabulary) for _ in range(words))
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "corpus.txt"
    path.write_text(text)
    return path

"""What the command line hands to the trainer to grow a model: JSON on its standard input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modelscaling.configuration import Message
from modelscaling.growth.mode import GrowthMode

GROWTH_MODULE = "modelscaling_trainer.growth.offline"
"""The module that reads it. The command line starts it as a program and does not import it."""


class LocalGrowth(Message):
    """One model to be grown."""

    source: Path
    """A checkpoint, the directory of a run, of which the newest is meant, or a Hugging Face one."""
    target: Path
    """What is written, of the same sort."""
    shape: dict[str, Any]
    """The fields of `spec.model` that are to be other than they are, by their names there."""
    mode: GrowthMode
    seed: int
    """Of the draws that new entries begin with."""
    noise: float
    """That breaks the symmetry of a hidden size that is cloned; 0 for none."""
    check: Path | None
    """A text that both models are to be compared on."""
    tokenizer: Path | None
    """The tokenizer.json of that text; None for the model's own, or for bytes where it has none."""
    is_json: bool
    """Whether what was done is written as one object of JSON to standard output."""

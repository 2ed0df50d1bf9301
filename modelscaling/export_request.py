"""What the command line hands to the trainer for an export, as JSON on its standard input."""

from __future__ import annotations

from pathlib import Path

from modelscaling.configuration import Message

EXPORT_MODULE = "modelscaling_trainer.hugging_face.export"
"""The module that reads it. The command line starts it as a program and does not import it."""


class ExportRequest(Message):
    """One export of a checkpoint."""

    source: Path
    """A directory of checkpoints, or one checkpoint."""
    output: Path
    """The directory to write, which does not exist yet."""
    tokenizer: Path | None
    """A tokenizer.json to copy."""
    is_json: bool
    """Whether what was written is said as an object of JSON."""

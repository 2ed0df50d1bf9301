"""What the command line hands to the trainer for a run on this machine, as JSON on its standard
input: a run that is resolved, and how to show it.
"""

from __future__ import annotations

from pathlib import Path

from modelscaling.configuration import Message, RunConfiguration
from modelscaling.mesh import Mesh

TRAINER_MODULE = "modelscaling_trainer.local"
"""The module that reads it. The command line starts it as a program and does not import it."""


class LocalRun(Message):
    """One run on this machine."""

    name: str
    configuration: RunConfiguration
    mesh: Mesh
    output: Path | None
    """Where checkpoints go and are resumed from; None saves nothing."""
    stop_at_step: int | None
    """The step to stop after; None trains to the end."""
    is_json: bool
    """Whether each step is written as a line of JSON to standard output."""

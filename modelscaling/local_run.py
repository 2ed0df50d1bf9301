"""What the command line hands to the trainer for a run on this machine, as JSON on its standard
input: a run that is resolved, and how to show it.
"""

from __future__ import annotations

from pathlib import Path

from modelscaling.configuration import Message, RunConfiguration
from modelscaling.mesh import Mesh

TRAINER_MODULE = "modelscaling_trainer.local"
"""The module that reads it. The command line starts it as a program and does not import it."""


class LaterModel(Message):
    """What a run trains from some step on, by growth.schedule."""

    tokens: int
    """How many tokens it has trained on then."""
    configuration: RunConfiguration
    mesh: Mesh


class LocalRun(Message):
    """One run on this machine."""

    name: str
    configuration: RunConfiguration
    """What it begins as."""
    mesh: Mesh
    later: tuple[LaterModel, ...] = ()
    """What it grows to, in the order of the tokens."""
    output: Path | None
    """Where checkpoints go and are resumed from; None saves nothing."""
    stop_at_step: int | None
    """The step to stop after; None trains to the end."""
    is_json: bool
    """Whether each step is written as a line of JSON to standard output."""

    @property
    def last_step(self) -> int:
        """The step that it ends with, unless it stops early."""
        total = self.configuration.training.total_steps
        return min(total, self.stop_at_step or total)

    def after(self, tokens: int) -> LocalRun:
        """Return the run from so many tokens on: what it is by then, and what is still ahead."""
        reached = [model for model in self.later if model.tokens <= tokens]
        if not reached:
            return self
        return self.model_copy(
            update={
                "configuration": reached[-1].configuration,
                "mesh": reached[-1].mesh,
                "later": self.later[len(reached) :],
            }
        )

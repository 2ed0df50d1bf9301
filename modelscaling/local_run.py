"""What the command line hands to the trainer for a run on this machine, as JSON on its standard
input: a run that is resolved, and how to show it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from modelscaling.configuration import Message, RunConfiguration
from modelscaling.mesh import Mesh

if TYPE_CHECKING:
    from modelscaling.shape import ModelShape

TRAINER_MODULE = "modelscaling_trainer.local"
"""The module that reads it. The command line starts it as a program and does not import it."""


class LocalStage(Message):
    """What a run trains from some step on; those after the first are of growth.schedule."""

    tokens: int
    """How many tokens it has trained on then; 0 for the first."""
    configuration: RunConfiguration
    mesh: Mesh


class LocalRun(Message):
    """One run on this machine."""

    name: str
    stages: tuple[LocalStage, ...]
    """What it trains one after the other, in the order of the tokens."""
    stage: int = 0
    """The number of that which it trains now."""
    output: Path | None
    """Where checkpoints go and are resumed from; None saves nothing."""
    stop_at_step: int | None
    """The step to stop after; None trains to the end."""
    is_json: bool
    """Whether each step is written as a line of JSON to standard output."""

    @property
    def configuration(self) -> RunConfiguration:
        """What it trains now."""
        return self.stages[self.stage].configuration

    @property
    def mesh(self) -> Mesh:
        """What it trains on now."""
        return self.stages[self.stage].mesh

    @property
    def last_step(self) -> int:
        """The step that it ends with, unless it stops early."""
        total = self.configuration.training.total_steps
        return min(total, self.stop_at_step or total)

    def after(self, tokens: int) -> LocalRun:
        """Return the run from so many tokens on; the same where it does not grow by then."""
        reached = sum(stage.tokens <= tokens for stage in self.stages) - 1
        return self if reached <= self.stage else self.model_copy(update={"stage": reached})

    def keeping(self, model: ModelShape) -> LocalRun | None:
        """Return the run with a model of before in place of that of now, and of those between; None
        where it never was of that model.
        """
        for number, stage in enumerate(self.stages[: self.stage]):
            if stage.configuration.model == model:
                left = (*self.stages[: number + 1], *self.stages[self.stage + 1 :])
                return self.model_copy(update={"stages": left, "stage": number})
        return None

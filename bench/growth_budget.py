"""How long each way to a large model may train for the same FLOPs, and with which course of the
learning rate.

FLOPs are those of training by the PaLM convention, 6·N + 12·L·h·hd·T a token. Those of the small
model count; validating and growing, which train nothing, do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelscaling.shape import ModelShape

SMALL_PART = 0.25
"""Of all FLOPs, before growth."""
DECAY_PART = 0.2
"""Of all FLOPs, in which the learning rate falls. It is the last part of each way, so that both
decay over equally many steps of the large model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A model that trains up to a step of its run."""

    shape: ModelShape
    until_step: int
    """Counted from the first step of the small model, where there was one."""
    decay_steps: int
    """In which the learning rate falls, at the end; 0 where growth follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The FLOPs that each way may take."""

    flops: int
    batch: int
    """Samples of a step."""
    small: ModelShape

    def small_phase(self) -> Phase:
        """Return what is trained before growth, the same whatever it grows into."""
        steps = round(SMALL_PART * self.flops / self._of_a_step(self.small))
        return Phase(shape=self.small, until_step=steps, decay_steps=0)

    def grown_phase(self, large: ModelShape) -> Phase:
        """Return how the grown model trains on."""
        before = self.small_phase().until_step
        left = self.flops - before * self._of_a_step(self.small)
        return self._last_phase(large, before + round(left / self._of_a_step(large)))

    def scratch_phase(self, shape: ModelShape) -> Phase:
        """Return how a model trains from its first step on that does not grow."""
        return self._last_phase(shape, round(self.flops / self._of_a_step(shape)))

    def tokens(self, phase: Phase) -> int:
        """Return how many tokens the run has trained on at the end of a phase."""
        return phase.until_step * self.batch * phase.shape.context_length

    def _last_phase(self, shape: ModelShape, until_step: int) -> Phase:
        decay_steps = round(DECAY_PART * self.flops / self._of_a_step(shape))
        return Phase(shape=shape, until_step=until_step, decay_steps=decay_steps)

    def _of_a_step(self, shape: ModelShape) -> int:
        return self.batch * shape.context_length * shape.flops_per_token()

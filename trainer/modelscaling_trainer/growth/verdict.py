"""Whether the growth of a model is taken back: what it has done to the loss on held-out samples,
against what it may.

Pure, and the same on all ranks, as all know the same losses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite, log
from typing import TYPE_CHECKING

from modelscaling.protocol import GrowthRejection

if TYPE_CHECKING:
    from modelscaling.configuration import RunConfiguration
    from modelscaling.growth.trained_model import TrainedModel
    from modelscaling_trainer.state import Counters


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgrown:
    """The state that a group's state has just grown from."""

    model: TrainedModel
    counters: Counters
    is_kept: bool
    """Whether it is still whole without those that leave: in memory, or as a checkpoint."""

    @property
    def validation_loss(self) -> float | None:
        """That of its very step, nats a token; None where it was not measured."""
        known = self.counters.validations.recent
        return known[-1].loss if known and known[-1].step == self.counters.step else None


def reject(
    outgrown: Outgrown, configuration: RunConfiguration, *, loss_after: float
) -> GrowthRejection | None:
    """Return why a group goes back to what its state has grown from; None where it does not.

    Samples of another length are others, so their losses are not compared.
    """
    before, after = outgrown.model.shape, configuration.model
    loss_before, tolerance = outgrown.validation_loss, configuration.growth_tolerance
    if tolerance is None or loss_before is None or before.context_length != after.context_length:
        return None
    allowed_rise = tolerance + log(after.vocabulary_size / before.vocabulary_size)
    if loss_after - loss_before <= allowed_rise:
        return None
    return GrowthRejection(
        # The epsilon of what was reached is nobody's wish.
        model=replace(before, norm_epsilon=after.norm_epsilon),
        loss_before=loss_before,
        loss_after=loss_after if isfinite(loss_after) else None,
        allowed_rise=allowed_rise,
    )

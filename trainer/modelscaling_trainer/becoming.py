"""How the model of the state that a group takes becomes the declared one, which it trains."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from modelscaling.growth.mode import Exactness
from modelscaling.growth.plan import UnreachableShapeError
from modelscaling.growth.trained_model import TrainedModel, plan_change
from modelscaling.layout import layout
from modelscaling_trainer.errors import ConfigurationError
from modelscaling_trainer.growth.shards import grow_shards, old_regions, old_shards
from modelscaling_trainer.settlement import Initialise, Load, Move

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelscaling.configuration import RunConfiguration
    from modelscaling.growth.step import Growth
    from modelscaling.layout import Region
    from modelscaling.mesh import Mesh
    from modelscaling_trainer.shard import Shard
    from modelscaling_trainer.state import Counters, TrainingState
    from modelscaling_trainer.transfer import Transfer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Becoming:
    """How the model of the state that is taken becomes that which the group trains."""

    model: TrainedModel
    """What the group trains."""
    growth: Growth
    """From what was trained; empty where that is the same."""
    seed: int

    def needed(self, mesh: Mesh, rank: int) -> dict[str, Region]:
        """Return the region of each old weight that a rank must be given to make its part."""
        return old_regions(self.growth, layout(self.model.shape, mesh, rank))

    def shards_before(self, new: TrainingState) -> Mapping[str, Shard]:
        """Return what is to be filled with the state before: the new shards themselves, or what
        they grow from.
        """
        if not self.growth:
            return new.shards()
        pieces = {name: shard.piece for name, shard in new.part.weights.items()}
        like = next(iter(new.part.weights.values())).tensor
        return old_shards(self.growth, pieces, like=like)

    def finish(self, new: TrainingState, old: Mapping[str, Shard]) -> None:
        """Make the new shards from those that were filled."""
        if self.growth:
            layers = self.model.shape.layers
            grow_shards(new.shards(), old, self.growth, seed=self.seed, layers=layers)

    def counters(self, before: Counters) -> Counters:
        """Return those of the new state."""
        return before.after_growth() if self.growth else before


def become(
    configuration: RunConfiguration,
    decision: Move | Load | Initialise,
    transfer: Transfer | None,
) -> Becoming:
    """Return how the state that is taken becomes the declared model.

    Raises:
        ConfigurationError: it does not.
    """
    declared, seed = configuration.model, configuration.training.seed
    if isinstance(decision, Initialise):
        if transfer is not None:
            declared = replace(declared, norm_epsilon=transfer.norm_epsilon)
        return Becoming(model=TrainedModel(shape=declared), growth={}, seed=seed)
    before = decision.model
    try:
        plan = plan_change(before.shape, declared, configuration.growth)
    except UnreachableShapeError as error:
        raise ConfigurationError(
            "ModelUnreachable",
            f"the run was trained as another model, which does not become the declared one: "
            f"{error}",
        ) from error
    if not plan.steps:
        return Becoming(model=before, growth={}, seed=seed)
    assert configuration.growth is not None
    for step in plan.steps:
        if step.exactness is Exactness.INEXACT:
            _log.warning("growth after step %d is inexact: %s", decision.step, step.description)
        else:
            _log.info("the model grows after step %d: %s", decision.step, step.description)
    return Becoming(
        model=before.grown(plan.shape, step=decision.step, mode=configuration.growth),
        growth=plan.growth(),
        seed=seed,
    )

"""The model that a state is of, and the larger one that it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelscaling.growth.lineage import NO_LINEAGE, Lineage
from modelscaling.growth.mode import GrowthMode
from modelscaling.growth.plan import GrowthPlan, Obstacle, UnreachableShapeError, plan_growth

if TYPE_CHECKING:
    from modelscaling.growth.heritage import Heritage
    from modelscaling.shape import ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """A shape, and the shapes that it was grown from."""

    shape: ModelShape
    """As it was reached: the epsilon of its norms may not be the declared one."""
    lineage: Lineage = NO_LINEAGE

    def heritage(self) -> dict[str, Heritage]:
        """Return that of every weight; empty where the model never grew."""
        return self.lineage.heritage(self.shape)

    def grown(self, shape: ModelShape, *, step: int, mode: GrowthMode) -> TrainedModel:
        """Return what it becomes when it grows to a shape, after so many steps."""
        return TrainedModel(
            shape=shape, lineage=self.lineage.grown(self.shape, step=step, mode=mode)
        )


def plan_change(trained: ModelShape, declared: ModelShape, mode: GrowthMode | None) -> GrowthPlan:
    """Return how a trained model becomes the declared one; without steps where it is that.

    Raises:
        UnreachableShapeError: `mode` allows no such steps; without a mode nothing may change.
    """
    plan = plan_growth(trained, declared, mode or GrowthMode.PRESERVE)
    if mode is None and plan.steps:
        raise UnreachableShapeError(
            [
                Obstacle(
                    field=step.field,
                    message=(
                        "differs from the trained model, and growth.mode is Forbid; leave it as it "
                        f"was, or set growth.mode to {GrowthMode.PRESERVE}"
                    ),
                )
                for step in plan.steps
            ]
        )
    return plan

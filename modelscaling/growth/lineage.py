"""The models that a model was grown from: all that a checkpoint must say of growth.

What the optimizer must know of each weight follows from it, purely: every process finds that of its
own blocks by itself.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from modelscaling.growth.heritage import first_heritage
from modelscaling.growth.mode import GrowthMode
from modelscaling.growth.plan import plan_growth
from modelscaling.layout import weights
from modelscaling.shape import ModelShape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelscaling.growth.heritage import Heritage


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestor:
    """A model that grew."""

    shape: ModelShape
    step: int
    """The optimizer steps that it had done when it grew."""
    mode: GrowthMode
    """How it grew."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """The models that a model was grown from, oldest first; none where it never grew."""

    ancestors: tuple[Ancestor, ...] = ()

    @property
    def grown_at(self) -> int | None:
        """The optimizer steps that were done when the model last grew; None where it never did."""
        return self.ancestors[-1].step if self.ancestors else None

    def grown(self, shape: ModelShape, *, step: int, mode: GrowthMode) -> Lineage:
        """Return that of the model which one of `shape`, with this lineage, grows to."""
        return Lineage((*self.ancestors, Ancestor(shape=shape, step=step, mode=mode)))

    def heritage(self, shape: ModelShape) -> dict[str, Heritage]:
        """Return that of every weight of a model of `shape` with this lineage; empty where it never
        grew.

        Raises:
            UnreachableShapeError: it is not the lineage of such a model.
        """
        if not self.ancestors:
            return {}
        first = self.ancestors[0].shape
        found = {name: first_heritage(size) for name, size in weights(first).items()}
        descendants = [*(ancestor.shape for ancestor in self.ancestors[1:]), shape]
        for ancestor, descendant in zip(self.ancestors, descendants, strict=True):
            growth = plan_growth(ancestor.shape, descendant, ancestor.mode).growth()
            found = {
                name: found[tensor.source].grown(tensor, ancestor.step)
                for name, tensor in growth.items()
            }
        return found

    def to_json(self) -> list[dict[str, Any]]:
        """Return it as JSON has it."""
        return [
            {"shape": asdict(one.shape), "step": one.step, "mode": one.mode.value}
            for one in self.ancestors
        ]


NO_LINEAGE = Lineage()


def lineage_from_json(value: Sequence[dict[str, Any]]) -> Lineage:
    """Return the lineage that `to_json` was given.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    return Lineage(
        tuple(
            Ancestor(
                shape=ModelShape.from_fields(one["shape"]),
                step=one["step"],
                mode=GrowthMode(one["mode"]),
            )
            for one in value
        )
    )

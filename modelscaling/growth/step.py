"""One step of growth: one dimension of the model, or its layers, and how exact that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelscaling.growth.axis import Axis, Span, joined, unchanged
from modelscaling.growth.dimensions import axes_of, fill_of
from modelscaling.growth.tensor_growth import TensorGrowth
from modelscaling.layout import weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from modelscaling.growth.axis import Fill
    from modelscaling.growth.dimensions import Dimension
    from modelscaling.growth.mode import Exactness
    from modelscaling.shape import ModelShape

Growth = dict[str, TensorGrowth]
"""Every tensor of the grown model, by its name, in the order of the forward pass."""
Run = tuple[int | None, int]
"""The first old entry of a run of entries, or None for new ones, and their number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthStep:
    """What changes in a step, and what that does to the logits."""

    field: str
    """Of the spec, such as `layers`."""
    shape: ModelShape
    """After it."""
    exactness: Exactness
    description: str
    """One sentence: the recipe and what is exact about it."""
    growth: Growth


def along(
    shape: ModelShape,
    runs: Mapping[Dimension, Iterable[Run]],
    *,
    scale: Callable[[str], float] = lambda _: 1.0,
    copies: Callable[[str], int] = lambda _: 1,
    fill: Callable[[str, Dimension], Fill] = fill_of,
) -> Growth:
    """Return the growth of every weight along some dimensions; `shape` is that before it."""
    laid = {dimension: list(those) for dimension, those in runs.items()}
    growth = {}
    for name in weights(shape):
        axes = []
        for dimension in axes_of(name):
            length = dimension.length(shape)
            axes.append(
                _axis(length, laid[dimension], fill(name, dimension))
                if dimension in laid
                else unchanged(length)
            )
        growth[name] = TensorGrowth(
            source=name, axes=tuple(axes), scale=scale(name), copies=copies(name)
        )
    return growth


def composed(steps: Iterable[Growth], shape: ModelShape) -> Growth:
    """Return one growth that does what steps do one after the other, from `shape`."""
    whole = along(shape, {})
    for step in steps:
        whole = {name: whole[later.source].then(later) for name, later in step.items()}
    return whole


def _axis(before: int, runs: Iterable[Run], fill: Fill) -> Axis:
    return Axis(
        before,
        joined(
            Span(length, fill=fill) if source is None else Span(length, source=source)
            for source, length in runs
        ),
    )

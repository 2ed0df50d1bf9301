"""What the optimizer must know of a weight that has grown: how old its entries are, and by what its
settings are multiplied.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from modelscaling.growth.tensor_growth import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelscaling.growth.axis import Axis
    from modelscaling.growth.tensor_growth import TensorGrowth
    from modelscaling.layout import Region


@dataclass(frozen=True, slots=True)
class Age:
    """A run of entries along an axis that began together."""

    length: int
    born: int
    """The optimizer step after which they began, with moments of 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heritage:
    """What a weight, or a block of one, has from the models it was grown from."""

    axes: tuple[tuple[Age, ...], ...]
    """Of each axis; an entry was born when the youngest of its row and its column was."""
    learning_rate: float = 1.0
    """What the run's learning rate is multiplied by for this weight."""
    weight_decay: float = 1.0
    epsilon: float = 1.0

    @property
    def oldest(self) -> int:
        """When the first of its entries were born."""
        return max(min((age.born for age in ages), default=0) for ages in self.axes)

    @property
    def youngest(self) -> int:
        """When the last of its entries were born."""
        return max(max((age.born for age in ages), default=0) for ages in self.axes)

    @property
    def has_mixed_ages(self) -> bool:
        """Whether its entries differ in age; one without entries does not."""
        return all(self.axes) and self.oldest != self.youngest

    def within(self, region: Region) -> Heritage:
        """Return that of a block."""
        axes = tuple(
            _joined(_part(ages, start, length))
            for ages, start, length in zip(self.axes, region.offset, region.size, strict=True)
        )
        return replace(self, axes=axes)

    def grown(self, growth: TensorGrowth, step: int) -> Heritage:
        """Return that of the tensor which comes from this one by a growth after `step`."""
        axes = [_grown(ages, axis, step) for ages, axis in zip(self.axes, growth.axes, strict=True)]
        if not growth.carries_moments:
            axes[0] = (Age(growth.axes[0].after, step),)
        return Heritage(
            axes=tuple(axes),
            learning_rate=self.learning_rate * growth.scale,
            weight_decay=self.weight_decay / growth.scale,
            epsilon=self.epsilon * growth.factor(Kind.EXP_AVG),
        )


def first_heritage(shape: tuple[int, ...]) -> Heritage:
    """Return that of a weight that has never grown."""
    return Heritage(axes=tuple((Age(length, 0),) for length in shape))


def _grown(ages: Sequence[Age], axis: Axis, step: int) -> tuple[Age, ...]:
    found: list[Age] = []
    for span in axis.spans:
        if span.source is None:
            found.append(Age(span.length, step))
        else:
            found += _part(ages, span.source, span.length)
    return _joined(found)


def _part(ages: Sequence[Age], start: int, length: int) -> list[Age]:
    """Return the ages of `length` entries from `start`."""
    found, offset = [], 0
    for age in ages:
        first, last = max(start, offset), min(start + length, offset + age.length)
        if first < last:
            found.append(Age(last - first, age.born))
        offset += age.length
    return found


def _joined(ages: Sequence[Age]) -> tuple[Age, ...]:
    found: list[Age] = []
    for age in ages:
        if found and found[-1].born == age.born:
            found[-1] = Age(found[-1].length + age.length, age.born)
        else:
            found.append(age)
    return tuple(found)

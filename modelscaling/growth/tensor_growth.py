"""How one tensor of a grown model comes from one of the old model, and what its optimizer's state
and settings become.

The law behind the numbers: let the grown tensor be `scale` times the old one, with `copies` of
each entry, and let the function be the same. Then the old entry's gradient g is the sum of scale ·
g' over its copies, and as they are alike g' = g / (scale · copies). AdamW moves the grown entry by
scale times the old one's step, so that growing and stepping commute, if

    exp_avg'    = exp_avg / (scale · copies)          learning rate' = learning rate · scale
    exp_avg_sq' = exp_avg_sq / (scale · copies)²      weight decay'  = weight decay / scale
    epsilon'    = epsilon / (scale · copies)
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from modelscaling.growth.axis import Fill, unchanged
from modelscaling.layout import Region

if TYPE_CHECKING:
    from modelscaling.growth.axis import Axis, Span


class Kind(StrEnum):
    """What is kept of each weight, by the prefix of its name in checkpoints."""

    MODEL = "model"
    EXP_AVG = "exp_avg"
    EXP_AVG_SQ = "exp_avg_sq"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorGrowth:
    """A tensor of the grown model."""

    source: str
    """The name of the old tensor that it comes from."""
    axes: tuple[Axis, ...]
    scale: float = 1.0
    """What copied entries are multiplied by."""
    copies: int = 1
    """How many entries of the grown model take the place of one old entry, each with an equal part
    in what it did. A copied layer is not counted: it does nothing yet."""
    carries_moments: bool = True
    """Whether copied entries bring their moments along; those of a copied layer do not, as their
    gradients are others'."""
    noise: float = 0.0
    """Deviation, relative to a row's, of noise that cancels over the copies of its entries: a
    matrix whose inputs are alike computes the same with it, and tells them apart from then on."""

    @property
    def before(self) -> tuple[int, ...]:
        """The shape of the old tensor."""
        return tuple(axis.before for axis in self.axes)

    @property
    def after(self) -> tuple[int, ...]:
        """The shape of the grown tensor."""
        return tuple(axis.after for axis in self.axes)

    def factor(self, kind: Kind) -> float:
        """Return what copied entries are multiplied by, in the weights or in a moment."""
        match kind:
            case Kind.MODEL:
                return self.scale
            case Kind.EXP_AVG:
                return 1 / (self.scale * self.copies)
            case Kind.EXP_AVG_SQ:
                return 1 / (self.scale * self.copies) ** 2

    def then(self, later: TensorGrowth) -> TensorGrowth:
        """Return the growth by this and then by `later`.

        Exact only where `later` does not copy what is fresh in this one: each draw is another.
        """
        return TensorGrowth(
            source=self.source,
            axes=tuple(a.then(b) for a, b in zip(self.axes, later.axes, strict=True)),
            scale=self.scale * later.scale,
            copies=self.copies * later.copies,
            carries_moments=self.carries_moments and later.carries_moments,
            noise=self.noise or later.noise,
        )

    def needed(self, region: Region, kind: Kind) -> Region | None:
        """Return the smallest block of the old tensor that a region of the grown one is made from;
        None where it needs nothing of it.
        """
        if kind is not Kind.MODEL and not self.carries_moments:
            return None
        boxes = [
            _box(axis, axis.part(start, length), needs_mean=kind is Kind.MODEL)
            for axis, start, length in zip(self.axes, region.offset, region.size, strict=True)
        ]
        found = [box for box in boxes if box is not None]
        if len(found) < len(boxes):
            return None
        return Region(
            tuple(start for start, _ in found), tuple(end - start for start, end in found)
        )


def unchanged_tensor(name: str, shape: tuple[int, ...]) -> TensorGrowth:
    """Return the growth of a tensor that stays as it is."""
    return TensorGrowth(source=name, axes=tuple(map(unchanged, shape)))


def _box(axis: Axis, spans: list[Span], *, needs_mean: bool) -> tuple[int, int] | None:
    """Return the first and the last old entry (exclusive) that spans are made from."""
    if needs_mean and any(span.fill is Fill.MEAN for span in spans):
        return 0, axis.before
    copied = [(span.source, span.source + span.length) for span in spans if span.source is not None]
    if not copied:
        return None
    return min(start for start, _ in copied), max(end for _, end in copied)

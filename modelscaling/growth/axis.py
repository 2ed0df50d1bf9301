"""One axis of a grown tensor, as runs of entries: each copied from the old axis, or new."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Fill(StrEnum):
    """What a new entry is. Where a tensor's axes disagree the first of these wins."""

    ZERO = "Zero"
    FRESH = "Fresh"
    """A draw, as for the first weights of a run."""
    MEAN = "Mean"
    """The mean of the old tensor over this axis; only the first axis of a table has it."""


@dataclass(frozen=True, slots=True)
class Span:
    """A run of entries: copies of `source` … `source + length` of the old axis, or new ones."""

    length: int
    source: int | None = None
    fill: Fill | None = None
    """Of new entries; None of copies."""

    def __post_init__(self) -> None:
        """Refuse what is neither, or both."""
        if (self.source is None) == (self.fill is None):
            raise ValueError(f"{self} must have either a source or a fill")

    def part(self, start: int, length: int) -> Span:
        """Return `length` of its entries from `start`, counted in the span."""
        return Span(length, None if self.source is None else self.source + start, self.fill)


@dataclass(frozen=True, slots=True)
class Axis:
    """How an axis of `before` entries has grown."""

    before: int
    spans: tuple[Span, ...]

    @property
    def after(self) -> int:
        """The number of entries of the grown axis."""
        return sum(span.length for span in self.spans)

    def part(self, start: int, length: int) -> list[Span]:
        """Return the spans of `length` entries from `start` of the grown axis."""
        found = []
        for offset, span in self.placed():
            first, last = max(start, offset), min(start + length, offset + span.length)
            if first < last:
                found.append(span.part(first - offset, last - first))
        return found

    def placed(self) -> Iterator[tuple[int, Span]]:
        """Yield each span with where it begins on the grown axis."""
        offset = 0
        for span in self.spans:
            yield offset, span
            offset += span.length

    def then(self, later: Axis) -> Axis:
        """Return the growth by this and then by `later`: from the oldest axis to the newest."""
        spans: list[Span] = []
        for span in later.spans:
            if span.source is None:
                spans.append(span)
            else:
                spans += self.part(span.source, span.length)
        return Axis(self.before, joined(spans))


def unchanged(length: int) -> Axis:
    """Return an axis that stays as it is."""
    return Axis(length, (Span(length, source=0),))


def all_new(before: int, after: int, fill: Fill) -> Axis:
    """Return an axis of which nothing is kept."""
    return Axis(before, (Span(after, fill=fill),))


def joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Return the same entries in as few spans as possible."""
    found: list[Span] = []
    for span in spans:
        if not span.length:
            continue
        last = found[-1] if found else None
        if last and last.fill is span.fill and _continues(last, span):
            found[-1] = Span(last.length + span.length, last.source, last.fill)
        else:
            found.append(span)
    return tuple(found)


def _continues(last: Span, span: Span) -> bool:
    return last.source is None or last.source + last.length == span.source

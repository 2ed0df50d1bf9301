"""Filling a region of a grown tensor from a block of the old one.

Whoever holds a region needs `TensorGrowth.needed` of the old tensor and nothing else, so sharded
models grow without any process that holds a whole one. What is fresh is drawn from the seed and the
name alone, so all processes and meshes draw the same.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import TYPE_CHECKING

import torch

from modelscaling.growth.axis import Fill
from modelscaling.growth.tensor_growth import Kind
from modelscaling_trainer.model.initial_weights import FIRST_DEVIATION, initial_values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from modelscaling.growth.axis import Axis, Span
    from modelscaling.growth.tensor_growth import TensorGrowth
    from modelscaling.layout import Region
    from modelscaling_trainer.shard import Shard


@torch.no_grad()
def grow_into(
    target: Shard,
    growth: TensorGrowth,
    kind: Kind,
    *,
    source: Tensor | None,
    held: Region | None,
    fresh: Callable[[], Tensor],
) -> None:
    """Fill a shard of a grown weight, or of one of its moments.

    `source` are the values of the block `held` of the old tensor, which covers what is `needed`;
    None where nothing is. `fresh` gives the draws for the whole region of the target; it is called
    where some are needed.
    """
    is_carried = kind is Kind.MODEL or growth.carries_moments
    drawn = cache(fresh)
    for place, spans in _blocks(target.piece.region, growth):
        block = target.tensor[place]
        fill = _fill(spans, kind, is_carried=is_carried)
        if fill is Fill.ZERO:
            block.zero_()
            continue
        if fill is Fill.FRESH:
            block.copy_(drawn()[place])
            continue
        assert source is not None
        assert held is not None
        old = source[_index(spans, held)]
        block.copy_(old if fill is None else _mean(old))
        if growth.factor(kind) != 1.0:
            block.mul_(growth.factor(kind))
        if growth.noise and fill is None and kind is Kind.MODEL:
            noise = _cancelling(drawn().to(block), growth, place)
            block.add_(noise * (growth.noise * _rms(block)))


def fresh_values(name: str, target: Shard, *, seed: int, layers: int) -> Tensor:
    """Return draws for new entries of a weight, in the whole of a shard's region: as the first
    weights of a run of such a model would be, but not the same, as some of the entries that were
    copied here may still be near those.
    """
    return initial_values(name, target.piece, seed=f"{seed} grown", layers=layers)


def _blocks(
    region: Region, growth: TensorGrowth
) -> Iterator[tuple[tuple[slice, ...], tuple[Span, ...]]]:
    """Yield where in the region each block lies that is one span along every axis."""
    axes = [
        _placed(axis, start, length)
        for axis, start, length in zip(growth.axes, region.offset, region.size, strict=True)
    ]
    for combination in itertools.product(*axes):
        yield tuple(place for place, _ in combination), tuple(span for _, span in combination)


def _placed(axis: Axis, start: int, length: int) -> list[tuple[slice, Span]]:
    """Return the spans of a part of an axis, each with where in the part it lies."""
    found, offset = [], 0
    for span in axis.part(start, length):
        found.append((slice(offset, offset + span.length), span))
        offset += span.length
    return found


def _fill(spans: tuple[Span, ...], kind: Kind, *, is_carried: bool) -> Fill | None:
    """Return what a block is filled with; None where it is copied."""
    fills = {span.fill for span in spans} - {None}
    if kind is not Kind.MODEL:
        return Fill.ZERO if fills or not is_carried else None
    return next((fill for fill in Fill if fill in fills), None)


def _index(spans: tuple[Span, ...], held: Region) -> tuple[slice, ...]:
    """Return where the old entries of a block lie in what is held: all, along an axis of which it
    takes the mean.
    """
    return tuple(
        slice(None)
        if span.source is None
        else slice(span.source - start, span.source - start + span.length)
        for span, start in zip(spans, held.offset, strict=True)
    )


def _cancelling(drawn: Tensor, growth: TensorGrowth, place: tuple[slice, ...]) -> Tensor:
    """Return noise of deviation 1 for a block, whose sum over the copies along the last axis is 0.

    Draws are of whole rows, as no mesh cuts the axis that such a matrix sums over.
    """
    copies = drawn.shape[-1] // growth.before[-1]
    assert drawn.shape[-1] == growth.after[-1]
    noise = drawn.view(-1, copies, growth.before[-1])[place[0]]
    noise = noise - noise.mean(1, keepdim=True)
    # The deviation of draws less their mean.
    deviation = FIRST_DEVIATION * (1 - 1 / copies) ** 0.5
    cancelling: Tensor = noise.flatten(1)[:, place[1]] / deviation
    return cancelling


def _rms(rows: Tensor) -> Tensor:
    return rows.square().mean(-1, keepdim=True).sqrt()


def _mean(rows: Tensor) -> Tensor:
    """Return the mean of all rows, summed in float64 so that all processes find the same."""
    total: Tensor = rows.sum(0, dtype=torch.float64)
    return (total / rows.shape[0]).to(rows.dtype)

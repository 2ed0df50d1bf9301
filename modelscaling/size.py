"""A shape for a number of parameters: what `spec.model.parameters: 20M` stands for.

The proportions are those of published decoders. Layers: one for every 64 of the hidden size up to
2048, 32 up to 4096, one for every 128 above, as in GPT-3 (Brown et al. 2020, table 2.1) and Llama.
Feed-forward: 8/3 of the hidden size (Shazeer 2020, "GLU Variants Improve Transformer"). Heads of
128 from a hidden size of 2048 on, of 64 from 256 on, and of 32 or 16 below; every head has keys
and values of its own. From 256 on, the hidden size is an even number of heads, so that tensor
parallelism can cut it.

No shape has every number of parameters, so there is a ladder: a rung for every 2 %, each the shape
of that size that is nearest to the proportions. A wish gets the nearest rung. So a larger wish
never gets a smaller model, and the same wish always gets the same one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor, log
from typing import TYPE_CHECKING

from modelscaling.shape import ModelShape

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALLEST, LARGEST = 10_000, 10**12
"""The least and the most parameters that can be wished for."""
TOLERANCE = 0.03
"""How far a shape may be from the wish, as a fraction of it."""
_STEP = 1.02
_MOST_LAYERS = 1024
_NARROWEST, _NARROW, _WIDE, _WIDEST = 16, 256, 2048, 65_536
"""Hidden sizes: the least and the most, and from which on heads are 64 and 128 wide."""
_LEAST_FEED_FORWARD, _MOST_FEED_FORWARD = 1, 8
"""In hidden sizes; the ends are for wishes that a large vocabulary leaves little of."""


@dataclass(frozen=True, slots=True)
class _Size:
    """What makes the size of the layers."""

    layers: int
    hidden_size: int
    feed_forward_size: int

    @property
    def strangeness(self) -> tuple[float, int]:
        """How far it is from the proportions; of two as far, the shallower one is nearer."""
        layers = log(self.layers / _usual_layers(self.hidden_size))
        feed_forward = log(self.feed_forward_size / _usual_feed_forward(self.hidden_size))
        return layers**2 + feed_forward**2, self.layers

    def shape(
        self, *, vocabulary_size: int, tied_embeddings: bool, context_length: int = 1024
    ) -> ModelShape:
        """Return the decoder of this size."""
        head_size = _head_size(self.hidden_size)
        heads = self.hidden_size // head_size
        return ModelShape(
            layers=self.layers,
            hidden_size=self.hidden_size,
            heads=heads,
            kv_heads=heads,
            head_size=head_size,
            feed_forward_size=self.feed_forward_size,
            vocabulary_size=vocabulary_size,
            context_length=context_length,
            tied_embeddings=tied_embeddings,
        )


def shape_of_size(
    parameters: int, *, vocabulary_size: int, tied_embeddings: bool, context_length: int
) -> ModelShape:
    """Return the shape nearest to a number of parameters, within TOLERANCE.

    Raises:
        ValueError: there is none, as the vocabulary's tables alone have more, or nobody trains as
            many.
    """
    if not SMALLEST <= parameters <= LARGEST:
        raise ValueError(
            f"parameters={parameters} is not between {SMALLEST} and {LARGEST}; wish for a size in "
            f"between"
        )
    rung = _rung_of(parameters)
    found = [
        size.shape(
            vocabulary_size=vocabulary_size,
            tied_embeddings=tied_embeddings,
            context_length=context_length,
        )
        for near in (rung - 1, rung, rung + 1)
        if (size := _best(near, vocabulary_size, tied_embeddings))
    ]
    nearest = min(found, key=lambda s: abs(s.parameters() - parameters), default=None)
    if nearest is None or abs(nearest.parameters() - parameters) > TOLERANCE * parameters:
        raise ValueError(
            f"no decoder with vocabularySize={vocabulary_size} has about {parameters} parameters; "
            f"wish for {_next_size(rung, vocabulary_size, tied_embeddings)} or more, or set a "
            f"smaller vocabularySize"
        )
    return nearest


def _rung_of(parameters: int) -> int:
    return floor(log(parameters) / log(_STEP))


def _next_size(rung: int, vocabulary_size: int, tied_embeddings: bool) -> int:  # noqa: FBT001
    """Return the parameters of the first rung from `rung` on that a shape has."""
    while not (size := _best(rung, vocabulary_size, tied_embeddings)):
        rung += 1
    shape = size.shape(vocabulary_size=vocabulary_size, tied_embeddings=tied_embeddings)
    return shape.parameters()


@lru_cache(maxsize=1024)
def _best(rung: int, vocabulary_size: int, tied_embeddings: bool) -> _Size | None:  # noqa: FBT001
    """Return the size nearest to the proportions that is on a rung; None where there is none."""
    start, end = ceil(_STEP**rung), ceil(_STEP ** (rung + 1))
    sizes = (
        size
        for hidden in _hidden_sizes()
        for size in _sizes(hidden, start, end, vocabulary_size, is_tied=tied_embeddings)
    )
    return min(sizes, key=lambda size: size.strangeness, default=None)


def _hidden_sizes() -> Iterator[int]:
    yield from range(_NARROWEST, _NARROW, 16)
    yield from range(_NARROW, _WIDE, 2 * 64)
    yield from range(_WIDE, _WIDEST + 1, 2 * 128)


def _sizes(
    hidden: int, start: int, end: int, vocabulary_size: int, *, is_tied: bool
) -> Iterator[_Size]:
    """Yield all of a width that have at least `start` and less than `end` parameters."""

    def count(layers: int, feed_forward: int) -> int:
        size = _Size(layers, hidden, feed_forward)
        return size.shape(vocabulary_size=vocabulary_size, tied_embeddings=is_tied).parameters()

    outside = count(0, 0)
    attention = count(1, 0) - outside
    each = count(1, 1) - outside - attention
    least, most = _LEAST_FEED_FORWARD * hidden, _MOST_FEED_FORWARD * hidden
    depths = _depths(hidden)
    fewest_layers = max(-((outside - start) // (attention + each * most)), depths.start)
    most_layers = min((end - 1 - outside) // (attention + each * least), depths[-1])
    multiple = _multiple(hidden)
    for layers in range(fewest_layers, most_layers + 1):
        first = -((outside + layers * attention - start) // (layers * each))
        last = (end - 1 - outside - layers * attention) // (layers * each)
        first, last = max(first, least), min(last, most)
        for feed_forward in range(-(-first // multiple) * multiple, last + 1, multiple):
            yield _Size(layers, hidden, feed_forward)


def _depths(hidden: int) -> range:
    """Return the numbers of layers to try; any for the narrowest, which a large vocabulary may
    leave no other way to grow.
    """
    if hidden < _NARROW:
        return range(1, _MOST_LAYERS + 1)
    usual = _usual_layers(hidden)
    return range(max(round(usual / 4), 1), min(round(usual * 4), _MOST_LAYERS) + 1)


def _usual_layers(hidden: int) -> float:
    return max(hidden / 128, min(hidden / 64, 32))


def _usual_feed_forward(hidden: int) -> float:
    return hidden * 8 / 3


def _head_size(hidden: int) -> int:
    if hidden >= _NARROW:
        return 128 if hidden >= _WIDE else 64
    return 16 if hidden % 32 else 32


def _multiple(hidden: int) -> int:
    """Return what the feed-forward size is a multiple of: a power of two, as large as leaves a
    size on each rung.
    """
    return min(1 << (hidden // 16).bit_length() - 1, 128)

"""How each dimension of a trained decoder grows: the recipes and what is exact about them.

For decoders of pre-norm RMSNorm, SwiGLU, rotary positions and grouped queries. Sources: zero
branches and layer insertion (Chen et al. 2016, Net2Net; Shen et al. 2022), cloning of the hidden
size (Samragh et al. 2024, HyperCloning), LEMON (Wang et al. 2023); the rest is derived in
`docs/growth.md`.
"""

from __future__ import annotations

from dataclasses import replace
from math import log, sqrt
from typing import TYPE_CHECKING

from modelscaling.growth.axis import Fill, all_new
from modelscaling.growth.dimensions import (
    INTO_RESIDUAL,
    NORMS_INTO_RESIDUAL,
    Dimension,
    axes_of,
    fill_of,
)
from modelscaling.growth.mode import Exactness
from modelscaling.growth.step import Growth, GrowthStep, Run, along
from modelscaling.layout import FINAL_NORM, HEAD, weights

if TYPE_CHECKING:
    from modelscaling.growth.tensor_growth import TensorGrowth
    from modelscaling.shape import ModelShape

_LAYER = "layers."


def clone_hidden_size(shape: ModelShape, times: int, *, noise: float) -> GrowthStep:
    """Repeat the residual stream: what writes to it is repeated, what reads it is repeated and
    divided, with noise that cancels over the copies.
    """
    size = shape.hidden_size
    last = FINAL_NORM if shape.tied_embeddings else HEAD
    return GrowthStep(
        field="hiddenSize",
        shape=replace(shape, hidden_size=size * times),
        exactness=Exactness.ROUNDING,
        description=(
            f"hiddenSize {size} × {times}: the residual stream is repeated, and what reads it is "
            f"divided by {times}; equal but for rounding. "
            + (
                f"Noise of {noise:g} that cancels breaks the symmetry of the copies, so that "
                f"training is no longer that of the old model"
                if noise
                else "So is training, with the settings and moments that go with it: copies stay "
                "copies where nothing else is new"
            )
        ),
        growth={
            name: replace(tensor, noise=noise if _reads_hidden(name) else 0.0)
            for name, tensor in along(
                shape,
                {Dimension.HIDDEN: [(0, size)] * times},
                scale=lambda name: 1 / times if name == last or _reads_hidden(name) else 1.0,
                copies=lambda name: times ** axes_of(name).count(Dimension.HIDDEN),
            ).items()
        },
    )


def pad_hidden_size(shape: ModelShape, size: int) -> GrowthStep:
    """Add entries to the residual stream that stay 0 until they are trained."""
    ratio = shape.hidden_size / size
    return GrowthStep(
        field="hiddenSize",
        shape=replace(shape, hidden_size=size, norm_epsilon=shape.norm_epsilon * ratio),
        exactness=Exactness.ROUNDING,
        description=(
            f"hiddenSize {shape.hidden_size} to {size}: new entries of the residual stream are 0; "
            f"norms are scaled by √({shape.hidden_size}/{size}) and their epsilon becomes "
            f"{shape.norm_epsilon * ratio:g}; equal but for rounding"
        ),
        growth=along(
            shape,
            {Dimension.HIDDEN: _appended(shape.hidden_size, size)},
            scale=lambda name: sqrt(ratio) if axes_of(name) == (Dimension.HIDDEN,) else 1.0,
        ),
    )


def grow_head_size(shape: ModelShape, size: int) -> GrowthStep:
    """Add pairs to each head. Not exact: all rotary wavelengths are spread over the larger head."""
    half, more = shape.head_size // 2, (size - shape.head_size) // 2

    def runs(heads: int) -> list[Run]:
        starts = range(0, heads * shape.head_size, half)
        return [run for start in starts for run in ((start, half), (None, more))]

    return GrowthStep(
        field="headSize",
        shape=replace(shape, head_size=size),
        exactness=Exactness.INEXACT,
        description=(
            f"headSize {shape.head_size} to {size}: the wavelengths of the rotary positions "
            f"change, so the logits do"
        ),
        growth=along(
            shape,
            {Dimension.QUERY: runs(shape.heads), Dimension.KEY: runs(shape.kv_heads)},
            # Attention divides the scores by √headSize.
            scale=lambda name: sqrt(size / shape.head_size) if _is_query(name) else 1.0,
            fill=lambda name, along_: Fill.ZERO if _is_query(name) else fill_of(name, along_),
        ),
    )


def grow_queries_per_group(shape: ModelShape, per_group: int) -> GrowthStep:
    """Add query heads to every group; the output matrix does not hear them yet."""
    before = shape.heads // shape.kv_heads
    width = shape.head_size
    runs: list[Run] = []
    for group in range(shape.kv_heads):
        runs += [(group * before * width, before * width), (None, (per_group - before) * width)]
    return GrowthStep(
        field="heads",
        shape=replace(shape, heads=shape.kv_heads * per_group),
        exactness=Exactness.BITWISE,
        description=(
            f"query heads per group {before} to {per_group}: new columns of the output matrix are 0"
        ),
        growth=along(shape, {Dimension.QUERY: runs}),
    )


def repeat_kv_heads(shape: ModelShape, times: int) -> GrowthStep:
    """Give the parts of each group a copy each of its key/value head."""
    width = shape.head_size
    runs: list[Run] = [
        (head * width, width) for head in range(shape.kv_heads) for _ in range(times)
    ]
    return GrowthStep(
        field="kvHeads",
        shape=replace(shape, kv_heads=shape.kv_heads * times),
        # A norm of all keys sums their squares in another order.
        exactness=Exactness.ROUNDING if shape.qk_norm else Exactness.BITWISE,
        description=(
            f"kvHeads {shape.kv_heads} × {times}: each is repeated for a part of its query heads; "
            f"the copies' moments, 1/{times} of the old ones, are an estimate, as each hears other "
            f"query heads from now on"
        ),
        growth=along(
            shape,
            {Dimension.KEY: runs},
            copies=lambda name: times if Dimension.KEY in axes_of(name) else 1,
        ),
    )


def append_groups(shape: ModelShape, kv_heads: int) -> GrowthStep:
    """Add whole groups; the output matrix does not hear them yet."""
    width, per_group = shape.head_size, shape.heads // shape.kv_heads
    grown = replace(shape, heads=kv_heads * per_group, kv_heads=kv_heads)
    return GrowthStep(
        field="kvHeads",
        shape=grown,
        exactness=Exactness.BITWISE,
        description=(
            f"groups {shape.kv_heads} to {kv_heads}, each a key/value head and {per_group} query "
            f"heads: new columns of the output matrix are 0"
        ),
        growth=along(
            shape,
            {
                Dimension.QUERY: _appended(shape.heads * width, grown.heads * width),
                Dimension.KEY: _appended(shape.kv_heads * width, kv_heads * width),
            },
        ),
    )


def grow_feed_forward(shape: ModelShape, size: int) -> GrowthStep:
    """Add elements to the feed-forward parts, which nothing hears yet."""
    return GrowthStep(
        field="feedForwardSize",
        shape=replace(shape, feed_forward_size=size),
        exactness=Exactness.BITWISE,
        description=(
            f"feedForwardSize {shape.feed_forward_size} to {size}: new columns of the down matrix "
            f"are 0"
        ),
        growth=along(shape, {Dimension.FEED_FORWARD: _appended(shape.feed_forward_size, size)}),
    )


def grow_vocabulary(shape: ModelShape, size: int) -> GrowthStep:
    """Add tokens as likely as the (geometric) mean of the old ones."""
    return GrowthStep(
        field="vocabularySize",
        shape=replace(shape, vocabulary_size=size),
        exactness=Exactness.BITWISE,
        description=(
            f"vocabularySize {shape.vocabulary_size} to {size}: new rows are the mean of the old "
            f"ones; old tokens keep their logits, and the loss rises by at most "
            f"{log(size / shape.vocabulary_size):.4f} as new ones get a part of the probability"
        ),
        growth=along(shape, {Dimension.VOCABULARY: _appended(shape.vocabulary_size, size)}),
    )


def lengthen_context(shape: ModelShape, length: int) -> GrowthStep:
    """Allow longer samples; no weight changes."""
    return GrowthStep(
        field="contextLength",
        shape=replace(shape, context_length=length),
        exactness=Exactness.BITWISE,
        description=(
            f"contextLength {shape.context_length} to {length}: old positions are as before, new "
            f"ones are untrained"
        ),
        growth=along(shape, {}),
    )


def change_rope_theta(shape: ModelShape, theta: float) -> GrowthStep:
    """Take other rotary wavelengths; no weight changes."""
    return GrowthStep(
        field="ropeTheta",
        shape=replace(shape, rope_theta=theta),
        exactness=Exactness.INEXACT,
        description=(
            f"ropeTheta {shape.rope_theta:g} to {theta:g}: every position is turned by other "
            f"angles, so the logits change"
        ),
        growth=along(shape, {}),
    )


def insert_layers(shape: ModelShape, layers: int) -> GrowthStep:
    """Insert copies after their originals, spread evenly, that add nothing to the stream yet."""
    ends = [index * layers // shape.layers for index in range(shape.layers + 1)]
    origins = [
        (index, place > ends[index])
        for index in range(shape.layers)
        for place in range(ends[index], ends[index + 1])
    ]
    return GrowthStep(
        field="layers",
        shape=replace(shape, layers=layers),
        exactness=Exactness.BITWISE,
        description=(
            f"layers {shape.layers} to {layers}: copies stand after their originals, spread "
            f"evenly, with "
            + ("norms" if shape.norm_after else "output and down matrices")
            + " of 0"
        ),
        growth=_layers(shape, layers, origins, is_silent=True),
    )


def stack_layers(shape: ModelShape, layers: int) -> GrowthStep:
    """Put the whole stack on itself until it is as high as wanted (Du et al. 2024, G_stack)."""
    origins = [(place % shape.layers, place >= shape.layers) for place in range(layers)]
    return GrowthStep(
        field="layers",
        shape=replace(shape, layers=layers),
        exactness=Exactness.INEXACT,
        description=(
            f"layers {shape.layers} to {layers}: the stack is repeated as it is, so the logits "
            f"change"
        ),
        growth=_layers(shape, layers, origins, is_silent=False),
    )


def _layers(
    shape: ModelShape, layers: int, origins: list[tuple[int, bool]], *, is_silent: bool
) -> Growth:
    """Return the growth to layers of which each has an origin, and is a copy or is it itself."""
    before = along(shape, {})
    silenced: tuple[str, ...] = ()
    if is_silent:
        silenced = NORMS_INTO_RESIDUAL if shape.norm_after else INTO_RESIDUAL
    growth = {}
    for name in weights(replace(shape, layers=layers)):
        if not name.startswith(_LAYER):
            growth[name] = before[name]
            continue
        index, _, rest = name.removeprefix(_LAYER).partition(".")
        origin, is_copy = origins[int(index)]
        tensor = before[f"{_LAYER}{origin}.{rest}"]
        growth[name] = _copy(tensor, silenced) if is_copy else tensor
    return growth


def _copy(tensor: TensorGrowth, silenced: tuple[str, ...]) -> TensorGrowth:
    """Return a tensor of a copied layer, which has yet to earn its moments."""
    axes = tensor.axes
    if tensor.source.endswith(silenced):
        axes = tuple(all_new(axis.before, axis.after, Fill.ZERO) for axis in axes)
    return replace(tensor, axes=axes, carries_moments=False)


def _reads_hidden(name: str) -> bool:
    """Whether a matrix takes the sum over the residual stream's entries."""
    return axes_of(name)[1:] == (Dimension.HIDDEN,) and axes_of(name)[0] is not Dimension.VOCABULARY


def _is_query(name: str) -> bool:
    return axes_of(name)[0] is Dimension.QUERY


def _appended(before: int, after: int) -> list[Run]:
    return [(0, before), (None, after - before)]

"""From a trained shape to a larger one: the steps, or why there are none and what is near."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from modelscaling.growth import recipes
from modelscaling.growth.mode import Exactness, GrowthMode
from modelscaling.growth.step import composed
from modelscaling.shape import divisors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelscaling.growth.step import Growth, GrowthStep
    from modelscaling.shape import ModelShape

_SIZES = (
    "layers",
    "hidden_size",
    "heads",
    "kv_heads",
    "head_size",
    "feed_forward_size",
    "vocabulary_size",
    "context_length",
)
_GROWING = (*_SIZES, "rope_theta", "norm_epsilon")


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Why a shape cannot be reached."""

    field: str
    """Of `spec.model`, such as `kvHeads`."""
    message: str
    """What was asked for, why it cannot be, and what can."""

    def __str__(self) -> str:
        """Return it as one line."""
        return f"{self.field}: {self.message}"


class UnreachableShapeError(ValueError):
    """No growth leads to the shape; says for each field why, and what is near."""

    def __init__(self, obstacles: list[Obstacle]) -> None:
        super().__init__("; ".join(map(str, obstacles)))
        self.obstacles = obstacles


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthPlan:
    """Steps from one shape to another, in their order."""

    before: ModelShape
    steps: tuple[GrowthStep, ...]

    @property
    def shape(self) -> ModelShape:
        """What is reached: as declared, but for the epsilon of the norms, which padding of the
        hidden size divides along with the mean square.
        """
        return self.steps[-1].shape if self.steps else self.before

    @property
    def exactness(self) -> Exactness:
        """That of the least exact step."""
        return max(
            (step.exactness for step in self.steps),
            key=list(Exactness).index,
            default=Exactness.BITWISE,
        )

    def growth(self) -> Growth:
        """Return all steps as one, so that no model between them is ever made."""
        return composed([step.growth for step in self.steps], self.before)


def plan_growth(
    small: ModelShape, large: ModelShape, mode: GrowthMode, *, noise: float = 0.0
) -> GrowthPlan:
    """Return the steps from one shape to another; none where they are the same.

    `noise` breaks the symmetry of a hidden size that is cloned (see TensorGrowth.noise).

    The epsilon of the norms is not declared but follows; that of `large` is not looked at. A plan
    is a part of the checkpoint format: a grown checkpoint names its shapes, and what is known of
    its optimizer's state follows from the steps between them.

    Raises:
        UnreachableShapeError: `mode` allows no steps that lead there.
    """
    if small.lora is not None and small == replace(large, norm_epsilon=small.norm_epsilon):
        return GrowthPlan(before=small, steps=())
    obstacles = [*_obstacles(small, large, mode)]
    if obstacles:
        raise UnreachableShapeError(obstacles)
    steps: list[GrowthStep] = []
    shape = small
    for step in _hidden_size(shape, large, noise):
        steps.append(step)
        shape = step.shape
    for grow in (_head_size, _heads, _widths, _layers):
        for step in grow(shape, large, mode):
            steps.append(step)
            shape = step.shape
    return GrowthPlan(before=small, steps=tuple(steps))


# The hidden size comes first: it copies, and what is copied must not be fresh.
def _hidden_size(shape: ModelShape, large: ModelShape, noise: float) -> Iterator[GrowthStep]:
    times, rest = divmod(large.hidden_size, shape.hidden_size)
    if rest:
        yield recipes.pad_hidden_size(shape, large.hidden_size)
    elif times > 1:
        yield recipes.clone_hidden_size(shape, times, noise=noise)


def _head_size(shape: ModelShape, large: ModelShape, _: GrowthMode) -> Iterator[GrowthStep]:
    if large.head_size != shape.head_size:
        yield recipes.grow_head_size(shape, large.head_size)


def _heads(shape: ModelShape, large: ModelShape, _: GrowthMode) -> Iterator[GrowthStep]:
    per_group = large.heads // large.kv_heads
    times = _times(shape, per_group)
    if times * per_group != shape.heads // shape.kv_heads:
        yield (step := recipes.grow_queries_per_group(shape, times * per_group))
        shape = step.shape
    if times > 1:
        yield (step := recipes.repeat_kv_heads(shape, times))
        shape = step.shape
    if shape.kv_heads != large.kv_heads:
        yield recipes.append_groups(shape, large.kv_heads)


def _widths(shape: ModelShape, large: ModelShape, _: GrowthMode) -> Iterator[GrowthStep]:
    if large.feed_forward_size != shape.feed_forward_size:
        yield (step := recipes.grow_feed_forward(shape, large.feed_forward_size))
        shape = step.shape
    if large.vocabulary_size != shape.vocabulary_size:
        yield (step := recipes.grow_vocabulary(shape, large.vocabulary_size))
        shape = step.shape
    if large.context_length != shape.context_length:
        yield (step := recipes.lengthen_context(shape, large.context_length))
        shape = step.shape
    if large.rope_theta != shape.rope_theta:
        yield recipes.change_rope_theta(shape, large.rope_theta)


def _layers(shape: ModelShape, large: ModelShape, mode: GrowthMode) -> Iterator[GrowthStep]:
    if large.layers == shape.layers:
        return
    grow = recipes.stack_layers if mode is GrowthMode.STACK else recipes.insert_layers
    yield grow(shape, large.layers)


def _obstacles(small: ModelShape, large: ModelShape, mode: GrowthMode) -> Iterator[Obstacle]:
    if small.lora is not None:
        yield Obstacle(
            field="lora",
            message=(
                "a model with adapters does not grow; begin a new run with initFrom, which merges "
                "them, or leave all else of model as it was"
            ),
        )
    shrunk = [*_shrunk(small, large)]
    yield from shrunk
    yield from _kept(small, large)
    if mode is GrowthMode.PRESERVE:
        yield from _inexact(small, large)
    if not shrunk:
        yield from _ungrouped(small, large)
        yield from _normed_together(small, large)


def _kept(small: ModelShape, large: ModelShape) -> Iterator[Obstacle]:
    """Yield what is neither a size nor declared otherwise than it was."""
    for name in (field.name for field in fields(small)):
        before, after = getattr(small, name), getattr(large, name)
        if name not in _GROWING and after != before:
            yield Obstacle(
                field=_camel(name),
                message=(
                    f"{after} is not the {before} of the trained model, and growth does not change "
                    f"it; leave it as it was"
                ),
            )


def _shrunk(small: ModelShape, large: ModelShape) -> Iterator[Obstacle]:
    for name in _SIZES:
        before, after = getattr(small, name), getattr(large, name)
        if after < before:
            yield Obstacle(
                field=_camel(name),
                message=(
                    f"{after} is less than the {before} of the trained model, and a model does not "
                    f"shrink; set it to at least {before}"
                ),
            )


def _inexact(small: ModelShape, large: ModelShape) -> Iterator[Obstacle]:
    if large.head_size > small.head_size:
        heads = large.heads * large.head_size // small.head_size
        rescued = large.heads * large.head_size % small.head_size == 0 and heads >= small.heads
        yield Obstacle(
            field="headSize",
            message=(
                f"{large.head_size} is not the {small.head_size} of the trained model, and another "
                f"head size changes the rotary wavelengths, so the model would not compute the "
                f"same; set headSize={small.head_size}"
                + (f" or heads={heads}" if rescued else "")
                + f", or the mode to {GrowthMode.STACK}"
            ),
        )
    if large.rope_theta != small.rope_theta:
        yield Obstacle(
            field="ropeTheta",
            message=(
                f"{large.rope_theta:g} is not the {small.rope_theta:g} of the trained model, so it "
                f"would not compute the same; set it to {small.rope_theta:g}, or the mode to "
                f"{GrowthMode.STACK}"
            ),
        )


def _ungrouped(small: ModelShape, large: ModelShape) -> Iterator[Obstacle]:
    if _has_groups(small, large.heads, large.kv_heads):
        return
    near = [
        *_nearest_heads(small, large),
        *(
            f"kvHeads={count}"
            for count in divisors(large.heads)
            if count >= small.kv_heads and _has_groups(small, large.heads, count)
        ),
    ]
    yield Obstacle(
        field="kvHeads",
        message=(
            f"heads={small.heads} in {small.kv_heads} groups do not become heads={large.heads} in "
            f"{large.kv_heads} groups: a query head would have to leave its key/value head; set "
            + " or ".join(near)
        ),
    )


def _normed_together(small: ModelShape, large: ModelShape) -> Iterator[Obstacle]:
    if not small.qk_norm:
        return
    is_same = (large.heads, large.head_size) == (small.heads, small.head_size)
    if not is_same or large.kv_heads % small.kv_heads:
        counts = [n for n in divisors(small.heads) if n % small.kv_heads == 0]
        yield Obstacle(
            field="heads",
            message=(
                f"the model norms the queries of all heads as one vector, and the keys, so that "
                f"new heads would change the old ones; set heads={small.heads}, "
                f"headSize={small.head_size} and kvHeads to {' or '.join(map(str, counts))}"
            ),
        )


def _nearest_heads(small: ModelShape, large: ModelShape) -> Iterator[str]:
    """Yield the numbers of query heads on either side that the declared groups can have."""
    fewest = max(small.heads, large.kv_heads)
    most = large.kv_heads * max(small.heads, large.heads)
    legal = [
        heads
        for heads in range(large.kv_heads, most + 1, large.kv_heads)
        if heads >= fewest and _has_groups(small, heads, large.kv_heads)
    ]
    below = [heads for heads in legal if heads < large.heads][-1:]
    above = [heads for heads in legal if heads > large.heads][:1]
    yield from (f"heads={heads}" for heads in below + above)


def _has_groups(small: ModelShape, heads: int, kv_heads: int) -> bool:
    """Whether the trained groups fit into others: each into one, or into several whole ones."""
    return small.kv_heads * _times(small, heads // kv_heads) <= kv_heads


def _times(small: ModelShape, per_group: int) -> int:
    """Return into how many groups one is cut, where each has `per_group` query heads."""
    return -(-(small.heads // small.kv_heads) // per_group)


def _camel(name: str) -> str:
    """Return a field's name as the spec has it."""
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))

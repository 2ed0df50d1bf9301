"""The models of spec.model.growth.schedule: which shapes a run has one after the other, each with
its mesh, or why they cannot be had.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from modelscaling.api.validation import InvalidSpecError, Problem, parse_model
from modelscaling.growth.plan import UnreachableShapeError, plan_growth
from modelscaling.growth.stages import Stage
from modelscaling.quantity import parse_quantity
from modelscaling.resolve import (
    GROWTH_MODES,
    resolve_plan,
    resolve_shape,
    tokenizer_vocabulary,
    training_tokens,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelscaling.api.growth_stage import GrowthStageSpec
    from modelscaling.api.model import ModelSpec
    from modelscaling.api.modelscaling import ModelScalingSpec
    from modelscaling.api.training import TrainingSpec
    from modelscaling.plan import Plan
    from modelscaling.shape import ModelShape


def resolve_stages(spec: ModelScalingSpec) -> tuple[Stage, ...]:
    """Return the shapes that a run has one after the other: the declared one, and that of each
    entry of growth.schedule.

    Raises:
        InvalidSpecError: an entry's tokens are out of order, or its shape cannot be had, or does
            not grow from the one before.
    """
    vocabulary = tokenizer_vocabulary(spec)
    model = spec.model
    stages = [Stage(tokens=0, shape=resolve_shape(model, default_vocabulary=vocabulary))]
    for number, entry in enumerate(spec.model.growth.schedule):
        path = f"spec.model.growth.schedule[{number}]"
        with _reported_at(path):
            model = _changed(model, entry)
            shape = resolve_shape(model, default_vocabulary=vocabulary)
        tokens = _stage_tokens(entry, path, after=stages[-1].tokens, training=spec.training)
        _check_growth(stages[-1].shape, shape, spec, path)
        stages.append(Stage(tokens=tokens, shape=shape))
    return tuple(stages)


def resolve_later_plans(
    spec: ModelScalingSpec, stages: tuple[Stage, ...], *, after: int = 0
) -> tuple[Plan, ...]:
    """Return the mesh of each shape that the run grows to after a stage.

    Raises:
        InvalidSpecError: there is none for one of them.
    """
    plans = []
    for number, stage in enumerate(stages[after + 1 :], start=after):
        try:
            plans.append(resolve_plan(spec, shape=stage.shape))
        except InvalidSpecError as error:
            path = f"spec.model.growth.schedule[{number}]"
            raise InvalidSpecError(
                [
                    Problem(field=path, message=f"the model that grows then: {problem}")
                    for problem in error.problems
                ]
            ) from None
    return tuple(plans)


def _changed(model: ModelSpec, entry: GrowthStageSpec) -> ModelSpec:
    """Return a model as an entry of the schedule changes it, as `kubectl patch` would."""
    before = model.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"growth"})
    changes = entry.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"tokens"})
    return parse_model(before | changes)


@contextmanager
def _reported_at(path: str) -> Iterator[None]:
    """Let what is wrong with spec.model be wrong with the entry at a path."""
    try:
        yield
    except InvalidSpecError as error:
        raise InvalidSpecError(
            [
                replace(problem, field=problem.field.replace("spec.model", path, 1))
                for problem in error.problems
            ]
        ) from None


def _stage_tokens(entry: GrowthStageSpec, path: str, *, after: int, training: TrainingSpec) -> int:
    field, end = f"{path}.tokens", training_tokens(training)
    try:
        tokens = parse_quantity(entry.tokens)
    except ValueError as error:
        raise InvalidSpecError([Problem(field=field, message=str(error))]) from None
    if after < tokens < end:
        return tokens
    message = (
        f"{entry.tokens} is not below training.tokens={training.tokens}, so that the run would end "
        f"before; lower it, or raise training.tokens"
        if tokens >= end
        else f"{entry.tokens} is not above {after}, at which the model is the one before; put the "
        f"entries into the order of their tokens, each above the last"
    )
    raise InvalidSpecError([Problem(field=field, message=message)])


def _check_growth(before: ModelShape, shape: ModelShape, spec: ModelScalingSpec, path: str) -> None:
    """Refuse an entry whose shape does not grow from the one before."""
    mode = GROWTH_MODES[spec.model.growth.mode]
    assert mode is not None, "CEL has made sure that a schedule does not stand beside Forbid"
    try:
        plan = plan_growth(before, shape, mode)
    except UnreachableShapeError as error:
        raise InvalidSpecError(
            [
                Problem(field=f"{path}.{obstacle.field}", message=obstacle.message)
                for obstacle in error.obstacles
            ]
        ) from None
    if not plan.steps:
        message = "changes nothing; give what of the model grows then, such as layers, or remove it"
        raise InvalidSpecError([Problem(field=path, message=message)])

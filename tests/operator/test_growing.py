"""Edits of spec.model: the run grows, or trains on as it was and says why."""

from __future__ import annotations

from typing import Any

import pytest

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.status import ConditionStatus, RunState
from tests.operator.growing import (
    GROWN,
    accepted,
    edit,
    layers_told,
    number,
    tick,
)
from tests.operator.runs import condition, make_world, state, trained_world


def test_a_larger_model_is_a_rescale_of_the_same_pods() -> None:
    world = trained_world()
    pods, before = set(world.pods), world.status.model
    edit(world, **GROWN)
    tick(world, 10)

    assert set(world.pods) == pods
    assert layers_told(world) == {3}
    assert number(world) == 2
    assert accepted(world) == (ConditionStatus.TRUE, Reason.ACCEPTED)
    assert [record.cause for record in world.status.rescales] == [Reason.MODEL_GROWN]
    assert world.status.rescales[0].lost_steps == 0
    assert state(world) is RunState.RUNNING
    assert before is not None
    assert world.status.model is not None
    assert world.status.model.parameters > before.parameters


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"model__layers": 1},
            "spec.model.layers: 1 is less than the 2 of the trained model",
            id="shrinking",
        ),
        pytest.param(
            {"model__headSize": 64},
            "spec.model.headSize: 64 is not the 16 of the trained model",
            id="a shape that is not reached exactly",
        ),
        pytest.param(
            {**GROWN, "model__growth": {"mode": "Forbid"}},
            "growth.mode is Forbid",
            id="growth that is forbidden",
        ),
    ],
)
def test_a_model_that_is_not_reached_is_refused_and_the_group_trains_on(
    changes: dict[str, Any], message: str
) -> None:
    world = trained_world()
    step, model = world.step, world.status.model
    edit(world, **changes)
    actions = []
    for _ in range(20):
        world.tick()
        actions += world.actions

    assert actions == []
    assert number(world) == 1
    assert world.step > step + 15
    assert accepted(world) == (ConditionStatus.FALSE, Reason.GROWTH_REFUSED)
    assert message in condition(world, ConditionType.ACCEPTED).message
    assert state(world) is RunState.RUNNING
    assert model == world.status.model

    edit(world)
    tick(world, 3)

    assert accepted(world) == (ConditionStatus.TRUE, Reason.ACCEPTED)
    assert number(world) == 1


def test_the_rest_of_an_edit_is_carried_out_with_the_model_that_stays() -> None:
    world = trained_world()
    edit(world, replicas=4, model__layers=1)
    tick(world, 20)

    assert world.members() == [0, 1, 2, 3]
    assert layers_told(world) == {2}
    assert accepted(world) == (ConditionStatus.FALSE, Reason.GROWTH_REFUSED)


def test_a_run_whose_growth_is_refused_survives_the_loss_of_a_pod() -> None:
    world = trained_world()
    edit(world, model__layers=1)
    tick(world, 3)
    world.crash(1)
    tick(world, 30)

    assert state(world) is RunState.RUNNING
    assert layers_told(world) == {2}
    assert number(world) == 2


def test_growth_waits_for_a_rescale_that_is_under_way_and_then_comes() -> None:
    world = trained_world()
    edit(world, replicas=4)
    while number(world) == 1:
        world.tick()
    edit(world, replicas=4, **GROWN)
    decision = world.decide()
    waiting = next(c for c in decision.status.conditions if c.type == ConditionType.ACCEPTED)
    tick(world, 20)

    assert (waiting.status, waiting.reason) == (ConditionStatus.FALSE, Reason.GROWTH_WAITS)
    assert layers_told(world) == {3}
    assert accepted(world) == (ConditionStatus.TRUE, Reason.ACCEPTED)
    causes = [record.cause for record in world.status.rescales]
    assert causes == [Reason.REPLICAS_CHANGED, Reason.MODEL_GROWN]


def test_how_a_model_may_grow_changes_nothing_until_it_does() -> None:
    world = trained_world()
    edit(world, model__growth={"mode": "Stack"})
    tick(world, 10)

    assert number(world) == 1
    assert accepted(world) == (ConditionStatus.TRUE, Reason.ACCEPTED)


def test_a_run_that_was_suspended_knows_what_it_had_trained() -> None:
    world = trained_world()
    edit(world, suspend=True)
    tick(world, 10)
    edit(world, model__layers=1)
    tick(world, 20)

    assert not world.pods or layers_told(world) == {2}
    assert accepted(world) == (ConditionStatus.FALSE, Reason.GROWTH_REFUSED)

    edit(world, **GROWN)
    tick(world, 20)

    assert layers_told(world) == {3}
    assert state(world) is RunState.RUNNING


def test_before_the_first_step_any_model_is_taken() -> None:
    world = make_world()
    world.tick()
    edit(world, model__layers=1)
    tick(world, 10)

    assert layers_told(world) == {1}
    assert accepted(world) == (ConditionStatus.TRUE, Reason.ACCEPTED)

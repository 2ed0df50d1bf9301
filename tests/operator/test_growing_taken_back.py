"""Growth that raises the loss: the run goes back to the model before, and says why."""

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
    rejecting_world,
    tick,
)
from tests.operator.runs import condition, state


def test_growth_that_raises_the_loss_is_taken_back_and_not_tried_again() -> None:
    world = rejecting_world()
    pods, step = set(world.pods), world.step
    edit(world, **GROWN)
    tick(world, 40)

    assert set(world.pods) == pods
    assert layers_told(world) == {2}
    assert number(world) == 3
    assert world.step > step + 20
    assert world.group.losses == 0
    assert state(world) is RunState.RUNNING
    assert accepted(world) == (ConditionStatus.FALSE, Reason.GROWTH_REJECTED)
    message = condition(world, ConditionType.ACCEPTED).message
    assert "from 2.5000 to 2.7500 nats a token, and 0.0500 more is allowed" in message
    [record] = world.status.rescales
    assert (record.cause, record.lost_steps) == (Reason.GROWTH_REJECTED, 0)
    assert (record.loss_before, record.loss_after) == ("2.5000", "2.7500")
    assert world.status.restarts.count == 0


def test_a_rejected_model_is_not_tried_by_other_edits() -> None:
    world = rejecting_world()
    edit(world, **GROWN)
    tick(world, 20)
    edit(world, replicas=4, **GROWN)
    tick(world, 20)

    assert world.members() == [0, 1, 2, 3]
    assert layers_told(world) == {2}
    assert number(world) == 4
    assert accepted(world) == (ConditionStatus.FALSE, Reason.GROWTH_REJECTED)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({**GROWN, "model__growth": {"tolerance": "0.5"}}, id="more is allowed"),
        pytest.param({**GROWN, "model__layers": 4}, id="another model"),
    ],
)
def test_another_growth_is_tried_after_one_was_taken_back(changes: dict[str, Any]) -> None:
    world = rejecting_world()
    edit(world, **GROWN)
    tick(world, 20)
    world.group.rejects_layers = None
    edit(world, **changes)
    tick(world, 20)

    assert layers_told(world) == {changes["model__layers"]}
    assert accepted(world) == (ConditionStatus.TRUE, Reason.ACCEPTED)
    assert world.status.rejected_growth is None
    causes = [record.cause for record in world.status.rescales]
    assert causes == [Reason.GROWTH_REJECTED, Reason.MODEL_GROWN]


def test_a_model_that_was_taken_back_and_is_declared_anew_is_tried_again() -> None:
    world = rejecting_world()
    edit(world, **GROWN)
    tick(world, 20)
    edit(world)
    tick(world, 5)
    calm = accepted(world), number(world)
    edit(world, **GROWN)
    tick(world, 20)

    assert calm == ((ConditionStatus.TRUE, Reason.ACCEPTED), 3)
    assert number(world) == 5
    assert accepted(world) == (ConditionStatus.FALSE, Reason.GROWTH_REJECTED)


def test_a_suspended_run_goes_on_as_the_model_that_it_went_back_to() -> None:
    world = rejecting_world()
    edit(world, **GROWN)
    tick(world, 20)
    edit(world, suspend=True, **GROWN)
    tick(world, 20)
    edit(world, **GROWN)
    tick(world, 20)

    assert layers_told(world) == {2}
    assert state(world) is RunState.RUNNING
    assert accepted(world) == (ConditionStatus.FALSE, Reason.GROWTH_REJECTED)


@pytest.mark.parametrize("lost_at", range(8))
def test_a_pod_may_be_lost_at_any_moment_of_it(lost_at: int) -> None:
    world = rejecting_world()
    edit(world, **GROWN)
    tick(world, lost_at)
    world.vanish(1)
    tick(world, 60)

    assert layers_told(world) == {2}
    assert state(world) is RunState.RUNNING
    assert accepted(world) == (ConditionStatus.FALSE, Reason.GROWTH_REJECTED)
    assert world.group.losses == 0
    assert "2.7500" in {record.loss_after for record in world.status.rescales}


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize("dies_at", range(8))
def test_the_operator_may_die_at_any_moment_of_it(dies_at: int, *, write: bool) -> None:
    world = rejecting_world()
    edit(world, **GROWN)
    tick(world, dies_at)
    world.tick(write=write, act=False)
    tick(world, 60)

    assert layers_told(world) == {2}
    assert state(world) is RunState.RUNNING
    assert accepted(world) == (ConditionStatus.FALSE, Reason.GROWTH_REJECTED)
    assert [record.cause for record in world.status.rescales] == [Reason.GROWTH_REJECTED]


def test_an_edit_that_takes_the_model_back_while_its_growth_is_judged_is_carried_out() -> None:
    world = rejecting_world()
    edit(world, **GROWN)
    while number(world) == 1:
        world.tick()
    edit(world)
    tick(world, 30)

    assert layers_told(world) == {2}
    assert state(world) is RunState.RUNNING
    assert accepted(world) == (ConditionStatus.TRUE, Reason.ACCEPTED)
    assert world.status.rejected_growth is None

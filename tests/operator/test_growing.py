"""Edits of spec.model: the run grows, or trains on as it was and says why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.status import ConditionStatus, RunState
from tests.operator.runs import CHECKPOINT, condition, make_world, state, trained_world

if TYPE_CHECKING:
    from tests.operator.world import World

GROWN = {"model__layers": 3, "model__feedForwardSize": 256}


def edit(world: World, **changes: Any) -> None:
    world.edit(**{"replicas": 2, "checkpoint": CHECKPOINT, **changes})


def tick(world: World, times: int) -> None:
    for _ in range(times):
        world.tick()


def layers_told(world: World) -> set[int]:
    """The layers that the agents were last told to train."""
    assignments = [agent.assignment for agent in world.agents.values()]
    return {told.configuration.model.layers for told in assignments if told is not None}


def number(world: World) -> int:
    assert world.status.group is not None
    return world.status.group.generation


def accepted(world: World) -> tuple[ConditionStatus, str]:
    found = condition(world, ConditionType.ACCEPTED)
    return found.status, found.reason


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


# Growth that is taken back


def rejecting_world(**changes: Any) -> World:
    """A world whose groups take growth to three layers back."""
    world = trained_world(**changes)
    world.group.rejects_layers = 3
    return world


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

"""Edits of spec.model: the run grows, or trains on as it was and says why."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.status import ConditionStatus, RunState
from tests.operator.runs import CHECKPOINT, condition, make_world, state, trained_world
from tests.operator.world_loop import WorldLoop

if TYPE_CHECKING:
    from tests.operator.world import World

GROWN = {"model__layers": 3, "model__feedForwardSize": 256}
TOKENS_PER_STEP = 512
ENTRIES: list[dict[str, Any]] = [
    {"tokens": 20 * TOKENS_PER_STEP, "layers": 3},
    {"tokens": 40 * TOKENS_PER_STEP, "layers": 4, "feedForwardSize": 256},
]
SCHEDULE = {"model__growth__schedule": ENTRIES}
SEEN_WITHIN = 3
"""Steps that the small world does before the operator has seen a count of tokens and changed the
group."""


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


def tick_to(world: World, step: int) -> None:
    while world.step < step:
        world.tick()


def train_unseen(world: World, steps: int) -> None:
    """Let the run train while no operator looks."""
    for _ in range(steps):
        world.live_on()
        world.now += timedelta(seconds=1)


def test_a_run_grows_by_itself_at_the_tokens_of_its_schedule() -> None:
    world = trained_world(**SCHEDULE)
    pods, small = set(world.pods), world.status.model
    tick_to(world, 20)
    told_at_first = layers_told(world)
    tick_to(world, 40)
    middle = world.status.model
    tick_to(world, 60)

    assert told_at_first == {2}
    assert layers_told(world) == {4}
    assert set(world.pods) == pods
    assert [record.cause for record in world.status.rescales] == [Reason.MODEL_GROWN] * 2
    for record, due in zip(world.status.rescales, (20, 40), strict=True):
        assert due <= record.step <= due + SEEN_WITHIN
        assert record.lost_steps == 0
    assert accepted(world) == (ConditionStatus.TRUE, Reason.ACCEPTED)
    large = world.status.model
    assert small is not None
    assert middle is not None
    assert large is not None
    assert (small.next_size, small.next_size_tokens) == (middle.size, ENTRIES[0]["tokens"])
    assert (middle.next_size, middle.next_size_tokens) == (large.size, ENTRIES[1]["tokens"])
    assert (large.next_size, large.next_size_tokens) == (None, None)


def test_entries_that_nobody_saw_reached_are_one_growth() -> None:
    world = trained_world(**SCHEDULE)
    train_unseen(world, 40)
    assert world.step > 40
    tick(world, 10)

    assert layers_told(world) == {4}
    assert [record.cause for record in world.status.rescales] == [Reason.MODEL_GROWN]


async def test_another_operator_grows_the_run_where_the_one_before_would_have() -> None:
    world = make_world(**SCHEDULE)
    async with WorldLoop(world=world) as operator:
        while world.step < 10:
            await operator.tick()
        await operator.kill()
        train_unseen(world, 15)
        for _ in range(10):
            await operator.start()
            await operator.tick()

    assert layers_told(world) == {3}
    assert [record.cause for record in world.status.rescales] == [Reason.MODEL_GROWN]


def test_a_run_that_grew_and_goes_back_to_before_it_does_not_shrink() -> None:
    world = trained_world(**SCHEDULE)
    tick_to(world, 30)
    world.group.saved = 12
    world.crash(0)
    world.crash(1)
    train_unseen(world, 1)
    told = set()
    while world.status.progress is None or not 12 < world.status.progress.step < 18:
        world.tick()
        told |= layers_told(world)
    tick(world, 3)

    assert world.step < 20
    assert layers_told(world) == {3}
    assert told == {3}
    assert accepted(world) == (ConditionStatus.TRUE, Reason.ACCEPTED)


def test_a_suspended_run_grows_as_it_goes_on_where_its_entry_came_meanwhile() -> None:
    world = trained_world()
    edit(world, suspend=True)
    tick(world, 10)
    edit(world, model__growth__schedule=[{"tokens": 5 * TOKENS_PER_STEP, "layers": 3}])
    tick(world, 20)

    assert layers_told(world) == {3}
    assert state(world) is RunState.RUNNING


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        pytest.param({**SCHEDULE, "model__layers": 2}, {3}, id="nothing"),
        pytest.param(
            {"model__growth__schedule": [{"tokens": 100 * TOKENS_PER_STEP, "layers": 3}]},
            {3},
            id="an entry that was reached is put off",
        ),
        pytest.param(
            {"model__layers": 3, "model__growth__schedule": ENTRIES[1:]},
            {3},
            id="an entry that was reached becomes the model",
        ),
        pytest.param(
            {"model__growth__schedule": [{**ENTRIES[0], "layers": 6}]},
            {6},
            id="an entry that was reached becomes a larger one",
        ),
        pytest.param(
            {"model__growth__schedule": [ENTRIES[0], {"tokens": "12k", "layers": 5}]},
            {5},
            id="an entry ahead comes sooner",
        ),
    ],
)
def test_an_edit_of_the_schedule_is_a_change_of_the_model_of_now(
    changes: dict[str, Any], layers: set[int]
) -> None:
    world = trained_world(**SCHEDULE)
    tick_to(world, 26)
    edit(world, **changes)
    tick(world, 8)

    assert layers_told(world) == layers
    assert number(world) == (2 if layers == {3} else 3)
    assert accepted(world) == (ConditionStatus.TRUE, Reason.ACCEPTED)


def test_an_edit_that_would_undo_an_entry_is_refused() -> None:
    world = trained_world(**SCHEDULE)
    tick_to(world, 26)
    edit(world)
    tick(world, 8)

    assert layers_told(world) == {3}
    assert number(world) == 2
    assert accepted(world) == (ConditionStatus.FALSE, Reason.GROWTH_REFUSED)
    assert "layers: 2 is less than the 3" in condition(world, ConditionType.ACCEPTED).message


def test_a_mesh_need_not_suit_the_models_that_the_run_has_left_behind() -> None:
    parallelism = {"strategy": "Custom", "pipeline": 3}
    schedule = {"model__growth__schedule": [{"tokens": 20 * TOKENS_PER_STEP, "layers": 3}]}
    world = trained_world(**schedule)
    edit(world, replicas=3, parallelism=parallelism, **schedule)
    tick(world, 3)
    early = accepted(world)
    tick_to(world, 26)
    tick(world, 10)

    assert early == (ConditionStatus.FALSE, Reason.INVALID_SPEC)
    assert accepted(world) == (ConditionStatus.TRUE, Reason.ACCEPTED)
    assert world.group.mesh == "pp3"
    assert layers_told(world) == {3}


def test_a_mesh_that_a_later_model_cannot_have_is_refused_before_it_comes() -> None:
    world = make_world(
        model__growth__schedule=[{"tokens": "16k", "feedForwardSize": 129}],
        parallelism={"strategy": "Custom", "tensor": 2, "tensorPlacement": "AcrossPods"},
    )
    tick(world, 3)

    assert not world.pods
    assert accepted(world) == (ConditionStatus.FALSE, Reason.INVALID_SPEC)
    message = condition(world, ConditionType.ACCEPTED).message
    assert message.startswith("spec.model.growth.schedule[0]: the model that grows then: ")


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


def test_an_entry_whose_growth_was_taken_back_is_left_out_and_the_next_is_tried() -> None:
    world = rejecting_world(**SCHEDULE)
    tick_to(world, 38)
    left_out = layers_told(world), accepted(world)
    tick_to(world, 60)

    assert left_out == ({2}, (ConditionStatus.FALSE, Reason.GROWTH_REJECTED))
    assert layers_told(world) == {4}
    assert accepted(world) == (ConditionStatus.TRUE, Reason.ACCEPTED)
    causes = [record.cause for record in world.status.rescales]
    assert causes == [Reason.GROWTH_REJECTED, Reason.MODEL_GROWN]

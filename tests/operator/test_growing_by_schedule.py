"""Growth by spec.model.growth.schedule, without anybody's hand."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.status import ConditionStatus, RunState
from tests.operator.growing import (
    accepted,
    edit,
    layers_told,
    number,
    rejecting_world,
    tick,
)
from tests.operator.runs import condition, make_world, state, trained_world
from tests.operator.world_loop import WorldLoop

if TYPE_CHECKING:
    from tests.operator.world import World

TOKENS_PER_STEP = 512
ENTRIES: list[dict[str, Any]] = [
    {"tokens": 20 * TOKENS_PER_STEP, "layers": 3},
    {"tokens": 40 * TOKENS_PER_STEP, "layers": 4, "feedForwardSize": 256},
]
SCHEDULE = {"model__growth__schedule": ENTRIES}
SEEN_WITHIN = 3
"""Steps that the small world does before the operator has seen a count of tokens and changed the
group."""


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

"""A run whose spec was edited into one that cannot be run goes on with the one before."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.status import ACCEPTED_SPEC_MAX_LENGTH, ConditionStatus, RunState
from modelscaling_operator.accepted_spec import describe_spec
from modelscaling_operator.wish import Wish, resolve_wish
from tests.operator.runs import CHECKPOINT, condition, make_world, state, trained_world
from tests.operator.world import RUN, World
from tests.operator.world_loop import WorldLoop
from tests.shared.spec import make_spec

_INVALID: dict[str, Any] = {"replicas": 3}
"""8 samples are no three equal parts."""


def tick(world: World, ticks: int) -> None:
    for _ in range(ticks):
        world.tick()


def accepted(world: World) -> tuple[ConditionStatus, str]:
    found = condition(world, ConditionType.ACCEPTED)
    return found.status, found.reason


def lose(world: World, how: str) -> None:
    match how:
        case "vanishes":
            world.vanish(1)
        case "crashes":
            world.crash(1)
        case "is lost with its node":
            world.lose_node(1)
        case "is drained":
            world.drain(1)


@pytest.mark.parametrize("how", ["vanishes", "crashes", "is lost with its node", "is drained"])
def test_a_lost_pod_is_replaced_although_the_spec_became_invalid(how: str) -> None:
    world = trained_world()
    world.edit(**_INVALID)
    tick(world, 3)
    lose(world, how)
    tick(world, 8)

    assert state(world) is RunState.RUNNING
    assert len(world.members()) == len(world.pods) == 2
    assert world.births == 3
    assert accepted(world) == (ConditionStatus.FALSE, Reason.INVALID_SPEC)
    assert world.status.observed_generation == world.generation


def test_what_the_run_goes_on_with_is_said_with_what_is_wrong() -> None:
    world = trained_world()
    world.edit(**_INVALID)
    tick(world, 1)

    message = condition(world, ConditionType.ACCEPTED).message
    assert message.startswith("spec.training.globalBatchSize: 8 is not divisible by")
    assert message.endswith("The run goes on with the spec that it had before.")


def test_a_run_whose_model_no_mesh_of_an_edit_can_have_replaces_lost_pods_too() -> None:
    """The edit is valid but for the model that the run is to keep."""
    world = trained_world(checkpoint=CHECKPOINT)
    unreachable = {"model__layers": 3, "model__growth": {"mode": "Forbid"}}
    world.edit(replicas=3, parallelism={"strategy": "Custom", "pipeline": 3}, **unreachable)
    tick(world, 3)
    world.vanish(1)
    tick(world, 8)

    assert state(world) is RunState.RUNNING
    assert world.members() == [0, 1]
    assert accepted(world) == (ConditionStatus.FALSE, Reason.INVALID_SPEC)


def test_limits_and_pauses_are_those_of_the_spec_before() -> None:
    world = trained_world(maxRestarts=0)
    world.edit(**_INVALID, maxRestarts=100)
    world.crash(1)
    tick(world, 2)

    assert condition(world, ConditionType.FAILED).reason == Reason.MAX_RESTARTS_EXCEEDED


def test_a_valid_edit_takes_its_place() -> None:
    world = trained_world()
    world.edit(**_INVALID)
    tick(world, 2)
    world.edit(replicas=4)
    tick(world, 8)

    assert len(world.members()) == 4
    assert accepted(world) == (ConditionStatus.TRUE, Reason.ACCEPTED)


def test_a_spec_that_never_was_valid_starts_nothing() -> None:
    world = make_world(**_INVALID)
    tick(world, 3)

    assert (world.births, world.status.accepted_spec) == (0, "")
    assert state(world) is RunState.INVALID


async def test_another_operator_knows_what_the_run_goes_on_with() -> None:
    world = make_world()
    async with WorldLoop(world=world) as operator:
        while state(world) is not RunState.RUNNING:
            await operator.tick()
        world.edit(**_INVALID)
        world.vanish(1)
        await operator.start()
        for _ in range(8):
            await operator.tick()

    assert state(world) is RunState.RUNNING
    assert len(world.members()) == len(world.pods) == 2


def _wish(**changes: Any) -> Wish:
    wish = resolve_wish(RUN, make_spec(**changes))
    assert isinstance(wish, Wish)
    return wish


def test_a_spec_comes_back_from_the_status_as_it_was() -> None:
    template = {
        "metadata": {"labels": {"team": "blue"}},
        "spec": {"containers": [{"name": "trainer", "env": [{"name": "A", "value": "1"}]}]},
    }
    wish = _wish(replicas=4, checkpoint=CHECKPOINT, template=template, elastic={"spares": 1})

    assert resolve_wish(RUN, json.loads(describe_spec(wish))) == wish


def test_a_spec_that_is_too_long_for_the_status_is_not_kept() -> None:
    value = "x" * ACCEPTED_SPEC_MAX_LENGTH
    container = {"name": "trainer", "env": [{"name": "A", "value": value}]}

    assert describe_spec(_wish(template={"spec": {"containers": [container]}})) == ""

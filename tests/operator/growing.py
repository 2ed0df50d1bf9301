"""Worlds whose model grows, as their tests speak of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelscaling.api.conditions import ConditionType
from tests.operator.runs import CHECKPOINT, condition, trained_world

if TYPE_CHECKING:
    from modelscaling.api.status import ConditionStatus
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


def rejecting_world(**changes: Any) -> World:
    """A world whose groups take growth to three layers back."""
    world = trained_world(**changes)
    world.group.rejects_layers = 3
    return world

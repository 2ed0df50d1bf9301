"""Runs in the small world of world.py that are to survive their pods, and how to read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelscaling.api.status import RunState
from tests.operator.world import World
from tests.shared.spec import make_spec

if TYPE_CHECKING:
    from modelscaling.api.conditions import ConditionType
    from modelscaling.api.status import Condition

CHECKPOINT = {"volume": {"persistentVolumeClaim": {"claimName": "runs"}}}
OTHER_VOLUME = {"volume": {"persistentVolumeClaim": {"claimName": "other"}}}


def make_world(**changes: Any) -> World:
    return World(spec=make_spec(**{"replicas": 2, "checkpoint": CHECKPOINT, **changes}))


def trained_world(**changes: Any) -> World:
    """A world whose group has done a few steps."""
    world = make_world(**changes)
    for _ in range(10):
        world.tick()
    assert state(world) is RunState.RUNNING
    return world


def state(world: World) -> RunState | None:
    return world.status.state


def condition(world: World, kind: ConditionType) -> Condition:
    return next(c for c in world.status.conditions if c.type == kind)

"""The operator is killed before each of its writes, in the middle of what changes a group."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

from modelscaling.api.status import RunState
from modelscaling.protocol import AgentState
from tests.operator.runs import CHECKPOINT, make_world, state
from tests.operator.world_loop import WorldLoop

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.operator.world import World

_SPEC: dict[str, Any] = {
    "replicas": 2,
    "checkpoint": CHECKPOINT,
    "training__globalBatchSize": 6,
    "parallelism": {"strategy": "Custom", "dataReplicate": 1},
}
_MOST_WRITES = 60


def _edit(**changes: Any) -> Callable[[World], None]:
    return lambda world: world.edit(**{**_SPEC, **changes})


_CHANGES = [
    pytest.param(_edit(replicas=3), 3, 0, id="two replicas become three"),
    pytest.param(_edit(replicas=1), 1, 0, id="two replicas become one"),
    pytest.param(
        _edit(parallelism={"strategy": "Custom", "dataReplicate": 2}), 2, 0, id="another mesh"
    ),
    pytest.param(lambda world: world.drain(0), 2, 0, id="a pod is drained"),
    pytest.param(lambda world: world.lose_node(1), 2, 1, id="a node is lost"),
]


@pytest.mark.parametrize(("change", "replicas", "losses"), _CHANGES)
async def test_an_operator_killed_before_any_write_leaves_one_change_behind(
    change: Callable[[World], None], replicas: int, losses: int
) -> None:
    trained = make_world(**_SPEC)
    async with WorldLoop(world=trained) as operator:
        while state(trained) is not RunState.RUNNING:
            await operator.tick()
    for writes in range(_MOST_WRITES):
        world = copy.deepcopy(trained)
        change(world)
        async with WorldLoop(world=world, objects=operator.objects) as operator:
            await operator.start(writes=writes)
            life = operator.life
            for _ in range(12):
                await operator.tick()

            assert state(world) is RunState.RUNNING, life.writes
            assert world.states() == [AgentState.TRAINING] * replicas
            assert len(world.pods) == len(world.agents) == replicas
            assert world.status.observed_generation == world.generation
            assert world.group.losses == losses
            assert len(world.status.rescales) == 1
            if life.writes_left:
                return
    raise AssertionError(f"{_MOST_WRITES} writes do not complete the change")


async def test_a_second_operator_is_refused_what_it_decides_on_an_older_status() -> None:
    world = make_world(**_SPEC)
    async with WorldLoop(world=world) as first, WorldLoop(world=world) as second:
        for _ in range(5):
            await first.tick()
            assert second.loop is not None
            await second.loop._look_safely()

        assert world.status.group is not None
        assert world.status.group.generation == 1
        assert state(world) is RunState.RUNNING

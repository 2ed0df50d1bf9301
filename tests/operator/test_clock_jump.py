"""The machine's clock is set while the group changes."""

from __future__ import annotations

import copy
from datetime import timedelta

import pytest

from modelscaling.api.status import RunState
from modelscaling.protocol import AgentState
from tests.operator.runs import CHECKPOINT, make_world, state
from tests.operator.world_loop import WorldLoop

_DAY = timedelta(days=1)
_TICKS_OF_A_CHANGE = 8


@pytest.mark.parametrize("jump", [_DAY, -_DAY], ids=["ahead", "back"])
async def test_a_change_is_completed_though_the_clock_jumps_at_any_moment_of_it(
    jump: timedelta,
) -> None:
    spec = {"replicas": 2, "checkpoint": CHECKPOINT, "training__globalBatchSize": 6}
    trained = make_world(**spec)
    async with WorldLoop(world=trained) as operator:
        while state(trained) is not RunState.RUNNING:
            await operator.tick()
    for moment in range(_TICKS_OF_A_CHANGE):
        world = copy.deepcopy(trained)
        world.edit(**{**spec, "replicas": 3})
        async with WorldLoop(world=world, objects=operator.objects) as again:
            for tick in range(20):
                if tick == moment:
                    world.now += jump
                await again.tick()

        assert state(world) is RunState.RUNNING, moment
        assert world.states() == [AgentState.TRAINING] * 3, moment
        assert [record.to for record in world.status.rescales] == ["dp3"], moment
        assert world.status.restarts.count == 0, moment
        assert float(world.status.rescales[0].downtime_seconds) >= 0, moment

from __future__ import annotations

import pytest

from modelscaling_trainer.settlement import Broadcast, Holding, Initialise, Keep, Load, settle

NOTHING = Holding()


def memory(step: int, digest: str = "a", *, checkpoint: int = -1) -> Holding:
    return Holding(memory_step=step, memory_digest=digest, checkpoint_step=checkpoint)


def disk(step: int) -> Holding:
    return Holding(checkpoint_step=step)


@pytest.mark.parametrize(
    ("holdings", "decision"),
    [
        ([NOTHING, NOTHING], Initialise()),
        ([memory(0), memory(0)], Keep()),
        ([memory(7), memory(7)], Keep()),
        ([memory(0), memory(7), memory(7)], Broadcast(source=1)),
        ([memory(6), memory(7)], Broadcast(source=1)),
        ([memory(7, "a"), memory(7, "b")], Broadcast(source=0)),
        ([NOTHING, memory(3)], Broadcast(source=1)),
        ([memory(0, checkpoint=200), memory(0, checkpoint=200)], Load(step=200)),
        ([memory(150), memory(0, checkpoint=200)], Load(step=200)),
        ([memory(200, checkpoint=200), NOTHING], Broadcast(source=0)),
        ([memory(250, checkpoint=200), memory(0, checkpoint=200)], Broadcast(source=0)),
        ([disk(100), disk(200)], Load(step=200)),
    ],
    ids=[
        "nobody has anything",
        "a run begins with the first weights everywhere",
        "all survivors are at the same step",
        "a newcomer is filled by the lowest rank that has the state",
        "one survivor was a step further",
        "survivors differ in what they have seen",
        "a torn state is filled",
        "a new group loads the newest checkpoint",
        "a checkpoint is newer than a stale memory",
        "memory wins at the same step",
        "memory is newer than the checkpoint",
        "the newest checkpoint that any rank sees counts",
    ],
)
def test_the_newest_state_is_taken(holdings: list[Holding], decision: object) -> None:
    assert decision == settle(holdings)

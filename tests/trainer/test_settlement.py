from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelscaling.layout import layout
from modelscaling.mesh import Mesh
from modelscaling_trainer.settlement import Holding, Initialise, Keep, Load, Move, settle
from tests.shared.workloads import make_shape, meshes

NOTHING = Holding()
DP1, DP2, DP3 = Mesh(), Mesh(dataReplicate=2), Mesh(dataReplicate=3)
FSDP2, FSDP4 = Mesh(dataShard=2), Mesh(dataShard=4)
HSDP = Mesh(dataReplicate=2, dataShard=2)
PP2, TP2_PP2 = Mesh(pipeline=2), Mesh(tensor=2, pipeline=2)


def memory(
    step: int, mesh: Mesh, rank: int = 0, *, digest: str = "a", checkpoint: int = -1
) -> Holding:
    return Holding(
        memory_step=step,
        memory_digest=digest,
        mesh=mesh,
        rank=rank,
        checkpoint_step=checkpoint,
    )


def disk(step: int) -> Holding:
    return Holding(checkpoint_step=step)


@pytest.mark.parametrize(
    ("holdings", "mesh", "decision"),
    [
        pytest.param([NOTHING, NOTHING], DP2, Initialise(), id="nobody has anything"),
        pytest.param(
            [memory(0, DP2, 0), memory(0, DP2, 1)],
            DP2,
            Keep(),
            id="a group that comes again before its first step",
        ),
        pytest.param(
            [memory(7, FSDP2, 0), memory(7, FSDP2, 1)],
            FSDP2,
            Keep(),
            id="all ranks hold their own shards",
        ),
        pytest.param(
            [memory(7, FSDP2, 1), memory(7, FSDP2, 0)],
            FSDP2,
            Move(mesh=FSDP2, holders={0: 1, 1: 0}),
            id="ranks have changed their places",
        ),
        pytest.param(
            [NOTHING, memory(3, DP1)],
            DP2,
            Move(mesh=DP1, holders={1: 0}),
            id="a newcomer is filled by who has the state",
        ),
        pytest.param(
            [memory(0, DP3, 0), memory(7, DP3, 1), memory(7, DP3, 2)],
            DP3,
            Move(mesh=DP3, holders={1: 1, 2: 2}),
            id="a rank that is behind is filled",
        ),
        pytest.param(
            [memory(7, FSDP4, rank) for rank in range(4)],
            TP2_PP2,
            Move(mesh=FSDP4, holders={rank: rank for rank in range(4)}),
            id="the mesh changes",
        ),
        pytest.param(
            [memory(7, HSDP, 0), memory(7, HSDP, 3)],
            FSDP2,
            Move(mesh=HSDP, holders={0: 0, 1: 3}),
            id="each shard survives in one of its copies",
        ),
        pytest.param(
            [memory(7, HSDP, 1, checkpoint=5), memory(7, HSDP, 3, checkpoint=5)],
            FSDP2,
            Load(step=5),
            id="both copies of a shard are lost",
        ),
        pytest.param(
            [memory(7, FSDP4, rank, checkpoint=5) for rank in range(3)],
            DP3,
            Load(step=5),
            id="a shard is lost",
        ),
        pytest.param(
            [memory(7, PP2, 1)],
            DP1,
            Initialise(),
            id="a stage is lost and there is no checkpoint",
        ),
        pytest.param(
            [memory(7, DP2, 0, digest="a"), memory(7, DP2, 1, digest="b")],
            DP2,
            Move(mesh=DP2, holders={0: 0}),
            id="survivors have seen other samples: the first one's state is everybody's",
        ),
        pytest.param(
            [memory(7, FSDP2, 0, digest="a"), memory(7, FSDP2, 1, digest="b")],
            FSDP2,
            Initialise(),
            id="shards of different histories make no state",
        ),
        pytest.param(
            # The change from fsdp2 to pp2 failed when one rank had its new part already.
            [memory(7, PP2, 0, checkpoint=5), memory(7, FSDP2, 1, checkpoint=5)],
            PP2,
            Load(step=5),
            id="halves on two meshes make no state",
        ),
        pytest.param(
            [memory(7, PP2, 0), memory(7, FSDP2, 0), memory(7, FSDP2, 1)],
            PP2,
            Move(mesh=FSDP2, holders={1: 0, 2: 1}),
            id="of two meshes the one that is whole is taken",
        ),
        pytest.param(
            # Rank 3 was lost when rank 0 had heard of the agreement and the others had not.
            [memory(7, HSDP, 0), memory(6, HSDP, 1), memory(6, HSDP, 2, checkpoint=4)],
            DP3,
            Move(mesh=HSDP, holders={1: 1, 2: 2}),
            id="the step before is whole where some took a step and some did not",
        ),
        pytest.param(
            [memory(7, HSDP, 0), memory(6, HSDP, 1), memory(6, HSDP, 2, checkpoint=7)],
            DP3,
            Load(step=7),
            id="a checkpoint is newer than what of the memories is whole",
        ),
        pytest.param([disk(100), disk(200)], DP2, Load(step=200), id="the newest checkpoint seen"),
        pytest.param(
            [memory(150, DP2, 0), memory(0, DP2, 1, checkpoint=200)],
            DP2,
            Load(step=200),
            id="a checkpoint is newer than a stale memory",
        ),
        pytest.param(
            [memory(200, DP1, checkpoint=200), NOTHING],
            DP2,
            Move(mesh=DP1, holders={0: 0}),
            id="memory wins at the same step",
        ),
    ],
)
def test_the_newest_state_that_is_whole_is_taken(
    holdings: list[Holding], mesh: Mesh, decision: object
) -> None:
    assert decision == settle(holdings, mesh)


@given(mesh=meshes(), data=st.data())
def test_memory_is_taken_where_it_holds_every_element_and_only_there(
    mesh: Mesh, data: st.DataObject
) -> None:
    survivors = data.draw(
        st.lists(st.integers(0, mesh.size - 1), min_size=1, unique=True), label="survivors"
    )
    shape = make_shape(layers=9)
    held = {
        (name, piece.region)
        for rank in survivors
        for name, piece in layout(shape, mesh, rank).items()
    }
    needed = {
        (name, piece.region)
        for rank in range(mesh.size)
        for name, piece in layout(shape, mesh, rank).items()
    }

    decision = settle(
        [memory(7, mesh, rank, checkpoint=5) for rank in survivors],
        Mesh(dataReplicate=len(survivors)),
    )

    is_loaded = decision == Load(step=5)
    # A tied table survives in either of the two stages that use it, but their layers do not.
    assert is_loaded == (held != needed)

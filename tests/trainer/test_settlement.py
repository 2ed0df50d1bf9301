from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscaling.growth.mode import GrowthMode
from modelscaling.growth.trained_model import TrainedModel
from modelscaling.layout import layout
from modelscaling.mesh import Mesh
from modelscaling_trainer.copies import place_in_copy
from modelscaling_trainer.settlement import (
    Held,
    Holding,
    Initialise,
    Load,
    Move,
    outlives_leavers,
    settle,
)
from tests.shared.workloads import make_shape, meshes

NOTHING = Holding()
MODEL = TrainedModel(shape=make_shape())
SINGLE = Mesh()
FSDP2, FSDP4 = Mesh(dataShard=2), Mesh(dataShard=4)
PP2 = Mesh(pipeline=2)


def held(step: int, mesh: Mesh, rank: int, *, digest: str = "a", is_snapshot: bool = False) -> Held:
    return Held(
        step=step, digest=digest, model=MODEL, mesh=mesh, rank=rank, is_snapshot=is_snapshot
    )


def holding(*parts: Held, checkpoint: int = -1) -> Holding:
    return Holding(
        held=parts,
        checkpoint_step=checkpoint,
        checkpoint_model=MODEL if checkpoint >= 0 else None,
    )


def load(step: int) -> Load:
    return Load(step=step, model=MODEL)


def memory(
    step: int, mesh: Mesh, rank: int = 0, *, digest: str = "a", checkpoint: int = -1
) -> Holding:
    return holding(held(step, mesh, rank, digest=digest), checkpoint=checkpoint)


def snapshots(live: int, copies: int, mesh: Mesh, rank: int, *, checkpoint: int = -1) -> Holding:
    """Return what a rank has that trained on after the last snapshots of it and its neighbour."""
    return holding(
        held(live, mesh, rank, digest=f"{live}"),
        held(copies, mesh, rank, digest=f"{copies}", is_snapshot=True),
        held(copies, mesh, (rank - 1) % mesh.size, digest=f"{copies}", is_snapshot=True),
        checkpoint=checkpoint,
    )


def move(step: int, mesh: Mesh, holders: dict[int, tuple[int, ...]], *, digest: str = "a") -> Move:
    return Move(step=step, digest=digest, model=MODEL, mesh=mesh, holders=holders)


def disk(step: int) -> Holding:
    return holding(checkpoint=step)


@pytest.mark.parametrize(
    ("holdings", "decision"),
    [
        pytest.param([NOTHING, NOTHING], Initialise(), id="nobody has anything"),
        pytest.param(
            [memory(0, SINGLE), memory(0, SINGLE)],
            move(0, SINGLE, {0: (0,), 1: (0,)}),
            id="a group that comes again before its first step",
        ),
        pytest.param(
            [memory(7, FSDP2, 0), memory(7, FSDP2, 1)],
            move(7, FSDP2, {0: (0,), 1: (1,)}),
            id="all ranks hold their own shards",
        ),
        pytest.param(
            [memory(7, FSDP2, 1), memory(7, FSDP2, 0)],
            move(7, FSDP2, {0: (1,), 1: (0,)}),
            id="ranks have changed their places",
        ),
        pytest.param(
            [NOTHING, memory(3, SINGLE)],
            move(3, SINGLE, {1: (0,)}),
            id="a newcomer is filled by who has the state",
        ),
        pytest.param(
            [memory(0, SINGLE), memory(7, SINGLE), memory(7, SINGLE)],
            move(7, SINGLE, {1: (0,), 2: (0,)}),
            id="a rank that is behind is filled",
        ),
        pytest.param(
            [memory(7, FSDP4, rank) for rank in range(4)],
            move(7, FSDP4, {rank: (rank,) for rank in range(4)}),
            id="the mesh changes",
        ),
        pytest.param(
            [memory(7, FSDP2, 0, checkpoint=5), memory(7, FSDP2, 0, checkpoint=5)],
            load(5),
            id="both copies of a shard are lost",
        ),
        pytest.param(
            [memory(7, FSDP4, rank, checkpoint=5) for rank in range(3)],
            load(5),
            id="a shard is lost",
        ),
        pytest.param(
            [memory(7, PP2, 1)],
            Initialise(),
            id="a stage is lost and there is no checkpoint",
        ),
        pytest.param(
            [memory(7, SINGLE, digest="a"), memory(7, SINGLE, digest="b")],
            move(7, SINGLE, {0: (0,)}),
            id="survivors have seen other samples: the first one's state is everybody's",
        ),
        pytest.param(
            [memory(7, FSDP2, 0, digest="a"), memory(7, FSDP2, 1, digest="b")],
            Initialise(),
            id="shards of different histories make no state",
        ),
        pytest.param(
            [memory(7, PP2, 0, checkpoint=5), memory(7, FSDP2, 1, checkpoint=5)],
            load(5),
            id="halves on two meshes make no state",
        ),
        pytest.param(
            # The change from fsdp2 to pp2 was done for rank 0, which let go of its old part, and
            # the group was lost before rank 1 knew that it was.
            [
                memory(7, PP2, 0, checkpoint=5),
                holding(held(7, FSDP2, 1), held(7, PP2, 1), checkpoint=5),
            ],
            move(7, PP2, {0: (0,), 1: (1,)}),
            id="of two meshes the one that is whole is taken",
        ),
        pytest.param(
            # Rank 3 was lost when rank 0 had heard of the agreement and the others had not.
            [memory(7, FSDP2, 0), memory(6, FSDP2, 1), memory(6, FSDP2, 0, checkpoint=4)],
            move(6, FSDP2, {1: (1,), 2: (0,)}),
            id="the step before is whole where some took a step and some did not",
        ),
        pytest.param(
            [memory(7, FSDP2, 0), memory(6, FSDP2, 1), memory(6, FSDP2, 0, checkpoint=7)],
            load(7),
            id="a checkpoint is newer than what of the memories is whole",
        ),
        pytest.param([disk(100), disk(200)], load(200), id="the newest checkpoint seen"),
        pytest.param(
            [memory(150, SINGLE), memory(0, SINGLE, checkpoint=200)],
            load(200),
            id="a checkpoint is newer than a stale memory",
        ),
        pytest.param(
            [memory(200, SINGLE, checkpoint=200), NOTHING],
            move(200, SINGLE, {0: (0,)}),
            id="memory wins at the same step",
        ),
        pytest.param(
            [NOTHING, *(snapshots(9, 7, FSDP4, rank) for rank in (1, 2, 3))],
            Move(
                step=7,
                digest="7",
                model=MODEL,
                mesh=FSDP4,
                holders={1: (1, 0), 2: (2, 1), 3: (3, 2)},
                needs_snapshots=True,
            ),
            id="a lost shard comes from its snapshot, and all go back to its step",
        ),
        pytest.param(
            [snapshots(9, 7, FSDP4, rank) for rank in range(4)],
            move(9, FSDP4, {rank: (rank,) for rank in range(4)}, digest="9"),
            id="snapshots are not touched while memory is whole",
        ),
        pytest.param(
            [snapshots(9, 7, FSDP4, rank, checkpoint=8) for rank in (1, 2, 3)],
            load(8),
            id="a checkpoint is newer than the snapshots",
        ),
        pytest.param(
            [snapshots(9, 7, FSDP4, rank, checkpoint=5) for rank in (2, 3)],
            load(5),
            id="a shard is lost with its snapshot",
        ),
        pytest.param(
            # Rank 0 was lost right after the snapshots: the others' parts are still those.
            [snapshots(7, 7, FSDP2, 1)],
            Move(
                step=7,
                digest="7",
                model=MODEL,
                mesh=FSDP2,
                holders={0: (1, 0)},
                needs_snapshots=True,
            ),
            id="a snapshot of the very step fills up what memory lacks",
        ),
        pytest.param(
            # Rank 0 died in the middle of the snapshots of step 9: rank 1 has it, rank 2 has not.
            [
                Holding(
                    held=(
                        held(9, Mesh(dataShard=3), 1, digest="9"),
                        held(9, Mesh(dataShard=3), 1, digest="9", is_snapshot=True),
                        held(7, Mesh(dataShard=3), 1, digest="7", is_snapshot=True),
                        held(7, Mesh(dataShard=3), 0, digest="7", is_snapshot=True),
                    )
                ),
                snapshots(9, 7, Mesh(dataShard=3), 2),
            ],
            Move(
                step=7,
                digest="7",
                model=MODEL,
                mesh=Mesh(dataShard=3),
                holders={0: (1, 0), 1: (2, 1)},
                needs_snapshots=True,
            ),
            id="snapshots that were not finished leave those before",
        ),
    ],
)
def test_the_newest_state_that_is_whole_is_taken(holdings: list[Holding], decision: object) -> None:
    assert decision == settle(holdings)


def test_halves_of_a_model_and_of_the_one_that_it_grew_to_make_no_state() -> None:
    grown = replace(MODEL, shape=make_shape(layers=9))
    other = replace(held(7, FSDP2, 1), model=grown)

    assert settle([memory(7, FSDP2, 0, checkpoint=5), holding(other)]) == load(5)


GROWN = MODEL.grown(make_shape(layers=9), step=7, mode=GrowthMode.PRESERVE)


def grown(step: int, mesh: Mesh = SINGLE, rank: int = 0) -> Held:
    """A part of what MODEL has become after step 7."""
    return replace(held(step, mesh, rank), model=GROWN)


def test_what_has_just_grown_comes_after_what_it_grew_from() -> None:
    both = [holding(grown(7), held(7, FSDP2, rank)) for rank in (0, 1)]
    a_half = [holding(grown(7), held(7, FSDP2, 0))]

    assert settle(both) == move(7, FSDP2, {0: (0,), 1: (1,)})
    assert settle([replace(one, checkpoint_step=7, checkpoint_model=MODEL) for one in a_half]) == (
        load(7)
    )
    assert settle(a_half) == replace(move(7, SINGLE, {0: (0,)}), model=GROWN)
    assert settle([replace(one, checkpoint_step=5, checkpoint_model=MODEL) for one in a_half]) == (
        replace(move(7, SINGLE, {0: (0,)}), model=GROWN)
    )


def test_what_has_trained_since_it_grew_is_a_state_like_any_other() -> None:
    saved = Holding(held=(grown(8),), checkpoint_step=8, checkpoint_model=GROWN)

    assert settle([saved]) == replace(move(8, SINGLE, {0: (0,)}), model=GROWN)


@pytest.mark.parametrize(
    ("holders", "ranks", "saved", "is_whole"),
    [
        pytest.param({0: (0,), 1: (1,)}, 2, 5, True, id="all stay"),
        pytest.param({0: (0,), 1: (1,)}, 1, 5, False, id="the only copy of a part leaves"),
        pytest.param({0: (0, 1), 1: (1,)}, 1, 5, True, id="who stays has it too"),
        pytest.param({0: (0,), 1: (1,)}, 1, 7, True, id="it is on the volume"),
    ],
)
def test_a_state_outlives_those_that_leave_where_others_have_all_of_it(
    holders: dict[int, tuple[int, ...]], ranks: int, saved: int, *, is_whole: bool
) -> None:
    holdings = [disk(saved), disk(saved)]

    assert outlives_leavers(move(7, FSDP2, holders), holdings, ranks=ranks) == is_whole


def test_a_checkpoint_outlives_those_that_leave_and_nothing_is_not_there() -> None:
    assert outlives_leavers(load(7), [disk(7)], ranks=1)
    assert not outlives_leavers(Initialise(), [NOTHING], ranks=1)


@settings(deadline=None)
@given(mesh=meshes(), data=st.data())
def test_memory_is_taken_where_it_holds_every_element_and_only_there(
    mesh: Mesh, data: st.DataObject
) -> None:
    survivors = data.draw(
        st.lists(st.integers(0, mesh.size - 1), min_size=1, unique=True), label="survivors"
    )
    shape = make_shape(layers=9)
    survived = {
        (name, piece.region)
        for rank in survivors
        for name, piece in layout(shape, mesh, rank).items()
    }
    needed = {
        (name, piece.region)
        for rank in range(mesh.size)
        for name, piece in layout(shape, mesh, rank).items()
    }

    decision = settle([memory(7, *place_in_copy(mesh, rank), checkpoint=5) for rank in survivors])

    is_loaded = decision == load(5)
    # A tied table survives in either of the two stages that use it, but their layers do not.
    assert is_loaded == (survived != needed)

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given

from modelscaling.mesh import AXES, Mesh
from tests.shared.workloads import meshes


@given(meshes())
def test_ranks_and_coordinates_are_the_same_set_in_both_directions(mesh: Mesh) -> None:
    places = [mesh.coordinates(rank) for rank in range(mesh.size)]

    assert mesh.size == prod(mesh.sizes().values())
    assert [mesh.rank(place) for place in places] == list(range(mesh.size))
    assert len({tuple(place.items()) for place in places}) == mesh.size
    assert all(0 <= place[axis] < getattr(mesh, axis) for place in places for axis in AXES)


def test_neighbours_differ_in_the_innermost_axis() -> None:
    mesh = Mesh(pipeline=2, dataReplicate=2, dataShard=2, context=2, tensor=2)

    assert [mesh.coordinates(1 << bit) for bit in range(5)] == [
        {other: int(other == axis) for other in AXES} for axis in reversed(AXES)
    ]


@given(meshes())
def test_processes_with_the_same_data_rank_share_their_part_of_the_batch(mesh: Mesh) -> None:
    parts = [mesh.data_rank(rank) for rank in range(mesh.size)]

    assert sorted(set(parts)) == list(range(mesh.data_parallel))
    assert {parts.count(part) for part in parts} == {mesh.size // mesh.data_parallel}


@pytest.mark.parametrize("rank", [-1, 4])
def test_a_rank_outside_of_the_mesh_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank={rank} is not in a mesh of 4 processes"):
        Mesh(dataReplicate=4).coordinates(rank)


@pytest.mark.parametrize("axis", AXES)
def test_an_axis_below_one_is_refused_by_name(axis: str) -> None:
    with pytest.raises(ValueError, match=f"{axis}=0 must be at least 1"):
        Mesh(**{axis: 0})


@pytest.mark.parametrize(("pipeline", "stages"), [(1, 2), (2, 0)])
def test_stages_are_interleaved_only_in_a_pipeline(pipeline: int, stages: int) -> None:
    with pytest.raises(ValueError, match=f"stagesPerProcess={stages} must be 1"):
        Mesh(pipeline=pipeline, stagesPerProcess=stages)


@pytest.mark.parametrize(
    ("mesh", "shown"),
    [
        (Mesh(), "single"),
        (Mesh(dataReplicate=4), "dp4"),
        (Mesh(dataReplicate=2, dataShard=2), "dp2×fsdp2"),
        (Mesh(pipeline=2, dataShard=4, context=3, tensor=8), "pp2×fsdp4×cp3×tp8"),
        (Mesh(pipeline=2, stagesPerProcess=2, tensor=2), "pp2(×2)×tp2"),
    ],
)
def test_a_mesh_is_shown_by_the_axes_that_are_used(mesh: Mesh, shown: str) -> None:
    assert str(mesh) == shown

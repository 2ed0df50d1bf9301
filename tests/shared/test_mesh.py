from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelscaling.mesh import Mesh


@given(st.integers(min_value=1, max_value=4096), st.data())
def test_rank_and_coordinates_are_inverse(size: int, data: st.DataObject) -> None:
    mesh = Mesh(dataReplicate=size)
    rank = data.draw(st.integers(min_value=0, max_value=size - 1))

    assert mesh.rank(mesh.coordinates(rank)) == rank


def test_a_rank_outside_of_the_mesh_is_refused() -> None:
    with pytest.raises(ValueError, match="rank=4 is not in a mesh of 4 processes"):
        Mesh(dataReplicate=4).coordinates(4)


def test_an_axis_below_one_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="dataReplicate=0 must be at least 1"):
        Mesh(dataReplicate=0)


def test_a_mesh_is_shown_by_the_axes_that_are_used() -> None:
    assert (str(Mesh()), str(Mesh(dataReplicate=4))) == ("single", "dp4")

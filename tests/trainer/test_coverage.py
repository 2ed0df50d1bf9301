from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelscaling.layout import layout
from modelscaling.mesh import Mesh
from modelscaling_trainer.coverage import covers, place_in_copy
from tests.shared.workloads import make_shape, meshes

HSDP = Mesh(dataReplicate=2, dataShard=2)


@pytest.mark.parametrize(
    ("mesh", "ranks", "is_whole"),
    [
        pytest.param(Mesh(dataReplicate=3), [2], True, id="any copy is enough"),
        pytest.param(HSDP, [0, 3], True, id="each shard in another copy"),
        pytest.param(HSDP, [1, 3], False, id="two copies of one shard"),
        pytest.param(Mesh(pipeline=2), [1], False, id="a stage is missing"),
        pytest.param(Mesh(), [], False, id="nobody"),
    ],
)
def test_of_each_shard_one_copy_is_needed(mesh: Mesh, ranks: list[int], *, is_whole: bool) -> None:
    assert covers(mesh, ranks) is is_whole


@given(mesh=meshes(), data=st.data())
def test_a_place_in_one_copy_has_the_same_shards(mesh: Mesh, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, mesh.size - 1))
    shape = make_shape(layers=9)
    single, place = place_in_copy(mesh, rank)

    regions = [
        {name: piece.region for name, piece in layout(shape, *at).items()}
        for at in ((mesh, rank), (single, place))
    ]
    assert regions[0] == regions[1]
    assert single.dataReplicate == 1

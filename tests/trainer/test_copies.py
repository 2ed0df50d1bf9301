from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from modelscaling.layout import layout
from modelscaling_trainer.copies import place_in_copy
from tests.shared.workloads import make_shape, meshes

if TYPE_CHECKING:
    from modelscaling.mesh import Mesh


@settings(deadline=None)
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

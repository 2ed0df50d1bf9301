from __future__ import annotations

import pytest

from modelscaling.mesh import Mesh
from modelscaling_trainer.loop import must_save
from modelscaling_trainer.request import Outcome, Request

COPIES = Mesh(dataReplicate=4)


@pytest.mark.parametrize(
    ("outcome", "requests", "mesh", "saves"),
    [
        pytest.param(Outcome.COMPLETE, set(), COPIES, True, id="the end of the run"),
        pytest.param(
            Outcome.COMPLETE, {Request.REFORM}, COPIES, True, id="a change in the last step"
        ),
        pytest.param(Outcome.STOPPED, {Request.STOP}, COPIES, True, id="a stop"),
        pytest.param(
            Outcome.STOPPED, {Request.STOP, Request.REFORM}, COPIES, True, id="a stop and a change"
        ),
        pytest.param(Outcome.STOPPED, {Request.REFORM}, COPIES, False, id="a change of copies"),
        pytest.param(
            Outcome.STOPPED, {Request.REFORM}, Mesh(dataShard=4), True, id="a change of shards"
        ),
    ],
)
def test_a_group_ends_with_a_checkpoint_unless_any_member_holds_all_for_the_next(
    outcome: Outcome, requests: set[Request], mesh: Mesh, *, saves: bool
) -> None:
    assert must_save(outcome, requests, mesh) is saves

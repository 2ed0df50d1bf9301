from __future__ import annotations

import pytest

from modelscaling_trainer.loop import must_save
from modelscaling_trainer.request import Outcome, Request


@pytest.mark.parametrize(
    ("outcome", "requests", "saves"),
    [
        pytest.param(Outcome.COMPLETE, set(), True, id="the end of the run"),
        pytest.param(Outcome.COMPLETE, {Request.REFORM}, True, id="a change in the last step"),
        pytest.param(Outcome.STOPPED, {Request.STOP}, True, id="a stop"),
        pytest.param(
            Outcome.STOPPED, {Request.STOP, Request.REFORM}, True, id="a stop and a change"
        ),
        pytest.param(Outcome.STOPPED, {Request.REFORM}, False, id="a change"),
        pytest.param(Outcome.STOPPED, {Request.GROW}, True, id="growth"),
    ],
)
def test_a_group_ends_with_a_checkpoint_unless_the_next_takes_its_state_over(
    outcome: Outcome, requests: set[Request], *, saves: bool
) -> None:
    assert must_save(outcome, requests) is saves

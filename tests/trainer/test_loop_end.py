from __future__ import annotations

import pytest

from modelscaling_trainer.loop import is_bare_volume, must_save
from modelscaling_trainer.request import Outcome, Request
from modelscaling_trainer.state import NOTHING


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


@pytest.mark.parametrize(
    ("step", "checkpoint_step", "is_bare"),
    [
        pytest.param(5001, NOTHING, True, id="the run was moved to another volume"),
        pytest.param(5001, 5000, False, id="there is a checkpoint"),
        pytest.param(0, NOTHING, False, id="the run begins"),
        pytest.param(7, 0, False, id="its very beginning was saved"),
    ],
)
def test_a_state_with_no_checkpoint_behind_it_is_not_left_to_the_next_save_in_turn(
    step: int, checkpoint_step: int, *, is_bare: bool
) -> None:
    assert is_bare_volume(step, checkpoint_step) is is_bare

from __future__ import annotations

from typing import Any

import pytest

from bench.step_log import StepMoment, first_step_since, furthest_step, outage, parse


def make_moment(time: float, **changes: Any) -> StepMoment:
    fields: dict[str, Any] = {"pid": 1, "rank": 0, "world": 2, "step": 1, "has_ended": False}
    return StepMoment(time=time, **(fields | changes))


OLD = [
    make_moment(10.0, step=4),
    make_moment(11.0, step=4, has_ended=True),
    make_moment(11.1, step=5),
]


def test_lines_are_read_back() -> None:
    assert parse("".join(moment.line() for moment in OLD)) == OLD


def test_no_lines_are_no_steps() -> None:
    assert furthest_step(parse("")) == 0


def test_a_step_that_has_only_begun_is_not_done() -> None:
    assert furthest_step(OLD) == 4


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(make_moment(12.0), id="a process of the group before"),
        pytest.param(make_moment(13.0, pid=2, world=1), id="a group on the way, of fewer"),
        pytest.param(
            make_moment(13.0, pid=2, rank=1), id="another rank, which waits for the first"
        ),
    ],
)
def test_a_group_goes_on_with_the_first_step_of_its_new_first_rank(other: StepMoment) -> None:
    resumed = make_moment(14.0, pid=3, step=5)

    assert first_step_since([*OLD, other], 11.5, world=2) is None
    assert first_step_since([*OLD, other, resumed], 11.5, world=2) == resumed


def test_a_planned_change_counts_from_the_last_step_that_ended() -> None:
    resumed = make_moment(14.0, pid=3, step=5)

    assert outage([*OLD, resumed], resumed).seconds == 3.0


def test_a_failure_counts_from_itself() -> None:
    resumed = make_moment(14.0, pid=3, step=5)

    assert outage([*OLD, resumed], resumed, failed_time=12.0).seconds == 2.0


@pytest.mark.parametrize(
    ("step", "steps_again"),
    [
        pytest.param(5, 0, id="the step that was broken off was not done yet"),
        pytest.param(4, 1, id="its checkpoint was not written"),
        pytest.param(2, 3, id="checkpoints are rare"),
    ],
)
def test_steps_that_were_done_and_begin_again_are_counted(step: int, steps_again: int) -> None:
    resumed = make_moment(14.0, pid=3, step=step)

    assert outage([*OLD, resumed], resumed).steps_again == steps_again


def test_steps_after_the_outage_do_not_change_it() -> None:
    resumed = make_moment(14.0, pid=3, step=5)
    later = make_moment(15.0, pid=3, step=5, has_ended=True)

    assert outage([*OLD, resumed, later], resumed) == outage([*OLD, resumed], resumed)

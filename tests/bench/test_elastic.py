from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from bench.elastic import _tour, table
from bench.outage import Change, Outage
from tests.bench.jobs import NotedJob

if TYPE_CHECKING:
    import pytest


class StuckJob(NotedJob):
    """A job that does not take a pod in."""

    def join(self) -> tuple[Outage, float]:
        raise TimeoutError("no step of 3 processes within 120 s")


def make_round(*, seconds: float, steps_again: int = 0) -> dict[Change, Outage]:
    return {Change.JOIN: Outage(seconds=seconds, steps_again=steps_again)}


def row_of(change: Change, lines: list[str]) -> str:
    (line,) = (line for line in lines if line.startswith(f"| {change.value} |"))
    return line.removeprefix(f"| {change.value} ")


def test_a_change_shows_medians_ranges_the_ratio_within_rounds_and_all_steps_again() -> None:
    ours = [make_round(seconds=0.1), make_round(seconds=0.2), make_round(seconds=0.6)]
    theirs = [make_round(seconds=1.0, steps_again=s) for s in (0, 1, 1)]

    row = row_of(Change.JOIN, list(table(ours, theirs)))

    assert row == (
        "| 0.20 (0.10 to 0.60) | 0.5 | 1.00 (1.00 to 1.00) | 0.20 (0.15 to 0.40) | 0 | 2 |"
    )


def test_a_side_that_did_not_go_on_is_said_to() -> None:
    row = row_of(Change.JOIN, list(table([make_round(seconds=0.1)], [{}])))

    assert "| never went on, in 0 of 1 rounds |" in row


def test_rounds_that_only_one_side_went_through_have_no_ratio() -> None:
    ours = [make_round(seconds=0.1), make_round(seconds=0.3)]

    row = row_of(Change.JOIN, list(table(ours, [make_round(seconds=1.0), {}])))

    assert "| 1.00 (1.00 to 1.00), in 1 of 2 rounds | 0.10 (0.10 to 0.10) |" in row


def test_a_job_that_does_not_go_on_keeps_what_was_measured_before(
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = nullcontext(StuckJob())

    assert list(_tour(lambda: job)) == [Change.WORKER_KILLED]
    assert "no step of 3 processes" in capsys.readouterr().err

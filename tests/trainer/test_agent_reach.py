from __future__ import annotations

from typing import Any

import pytest

from modelscaling.protocol import LateWorker, Member
from modelscaling_trainer.agent.facts import Facts
from modelscaling_trainer.agent.lateness import Pace
from modelscaling_trainer.agent.reach import Reach, is_held_up
from modelscaling_trainer.agent.worker_facts import WorkerFacts
from tests.trainer.agent_builders import make_placement

ONE, TWO = (Member(index=i, address=f"10.0.0.{i}", processes=1) for i in (1, 2))


def unreachable(*answers: tuple[float, bool], now: float, limit_s: float = 8.0) -> frozenset[int]:
    """Return what is unreachable at a time, after pod 2 was asked at these."""
    reach = Reach()
    for asked_at, has_answered in answers:
        reach = reach.after({ONE: True, TWO: has_answered}, asked_at=asked_at)
    return reach.unreachable(now=now, limit_s=limit_s)


@pytest.mark.parametrize(
    ("answers", "now", "expected"),
    [
        pytest.param([], 100.0, set(), id="nobody was asked"),
        pytest.param([(1.0, True)], 100.0, set(), id="it answered"),
        pytest.param([(1.0, False)], 8.9, set(), id="it is silent for a while"),
        pytest.param([(1.0, False), (5.0, False)], 9.0, {2}, id="it is silent for long"),
        pytest.param([(1.0, False), (8.0, True)], 9.5, set(), id="it answered again"),
        pytest.param(
            [(1.0, False), (2.0, True), (3.0, False)], 10.0, set(), id="it is counted anew"
        ),
    ],
)
def test_who_is_unreachable(
    answers: list[tuple[float, bool]], now: float, expected: set[int]
) -> None:
    assert unreachable(*answers, now=now) == expected


def test_who_is_not_asked_any_more_is_forgotten() -> None:
    reach = Reach().after({TWO: False}, asked_at=0.0).after({}, asked_at=1.0)

    assert reach.after({TWO: False}, asked_at=5.0).unreachable(now=9.0, limit_s=8.0) == set()


def pace(**changes: Any) -> Pace:
    return Pace(**{"group": (1, 1), "phase": "Training", "advanced_at": 10.0, **changes})


@pytest.mark.parametrize(
    ("worker", "lost", "expected"),
    [
        pytest.param(pace(), set(), False, id="it computes"),
        pytest.param(pace(is_waiting=True), set(), True, id="it waits for its peers"),
        pytest.param(
            pace(is_waiting=True, advanced_at=11.5), set(), False, id="it has just done a step"
        ),
        pytest.param(pace(phase="Forming"), set(), True, id="its group forms for long"),
        pytest.param(pace(phase=None), set(), True, id="it was told to join long ago"),
        pytest.param(pace(phase="Saving"), set(), False, id="it saves"),
        pytest.param(Pace(), set(), False, id="it waits for a group"),
        pytest.param(pace(), {1}, True, id="another agent has fallen silent"),
    ],
)
def test_when_a_group_is_held_up(worker: Pace, lost: set[int], *, expected: bool) -> None:
    facts = Facts(workers=(WorkerFacts(),), placement=make_placement(1, 1), lost=frozenset(lost))

    assert is_held_up(facts, [worker], now=13.0) is expected


def test_a_group_is_held_up_by_a_worker_that_is_late() -> None:
    late = LateWorker(rank=0, step=7, seconds=20.0, is_waiting=False)
    facts = Facts(workers=(WorkerFacts(),), placement=make_placement(1, 1), late=(late,))

    assert is_held_up(facts, [pace()], now=30.0)


def test_without_a_group_nothing_is_held_up() -> None:
    facts = Facts(workers=(WorkerFacts(),), lost=frozenset({1}))

    assert not is_held_up(facts, [Pace()], now=13.0)

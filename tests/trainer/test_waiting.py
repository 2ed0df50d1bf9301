from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

from modelscaling_trainer.waiting import WaitClock, counted_waits, is_waiting


class Time:
    """A clock that only a wait moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> float:
        self.now += seconds
        return seconds


def test_waits_add_up_and_keep_their_results() -> None:
    time = Time()
    clock = WaitClock(time)
    wait = clock.timed(time.wait)

    assert [wait(2.0), wait(3.0)] == [2.0, 3.0]
    assert clock.seconds == 5.0


def test_a_wait_within_a_wait_counts_once() -> None:
    time = Time()
    clock = WaitClock(time)
    inner = clock.timed(time.wait)

    def outer() -> None:
        time.wait(1.0)
        inner(2.0)

    clock.timed(outer)()

    assert clock.seconds == 3.0


def test_a_wait_that_fails_counts_too() -> None:
    time = Time()
    clock = WaitClock(time)

    def fail() -> None:
        time.wait(4.0)
        raise ConnectionError

    for _ in range(2):
        with pytest.raises(ConnectionError):
            clock.timed(fail)()

    assert clock.seconds == 8.0


@pytest.mark.usefixtures("group_of_one")
def test_every_way_of_torch_to_wait_is_counted() -> None:
    tensor, group = torch.ones(4), dist.group.WORLD
    assert group is not None
    counted = []
    with counted_waits() as clock:
        dist.all_reduce(tensor)
        counted.append(clock.seconds)
        work = dist.all_reduce(tensor, async_op=True)
        assert work is not None
        work.wait()
        counted.append(clock.seconds)
        _ = functional.all_reduce(tensor, "sum", group) + 1  # waits where it is first used
        counted.append(clock.seconds)

    assert 0.0 < counted[0] < counted[1] < counted[2]


def test_nothing_is_counted_afterwards() -> None:
    before = (dist.Work.wait, functional.wait_tensor, functional.wait_tensors)
    with pytest.raises(KeyError), counted_waits():
        raise KeyError

    assert before == (dist.Work.wait, functional.wait_tensor, functional.wait_tensors)


@pytest.mark.usefixtures("group_of_one")
def test_whether_a_process_waits_can_be_asked_while_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(dist.Work, "wait", lambda _: seen.append(is_waiting()))
    work = dist.all_reduce(torch.ones(1), async_op=True)
    assert work is not None

    with counted_waits(), counted_waits():
        seen.append(is_waiting())
        work.wait()
        seen.append(is_waiting())
    work.wait()

    assert seen == [False, True, False, False]

from __future__ import annotations

import pytest

from modelscaling_trainer.errors import GroupLostError
from modelscaling_trainer.request import Request, Requests


def test_what_is_asked_is_taken_once() -> None:
    requests = Requests()
    requests.ask(Request.CHECKPOINT)
    requests.ask(Request.CHECKPOINT)
    requests.ask(Request.STOP)

    assert requests.asks_to_leave()
    assert requests.take() == {Request.CHECKPOINT, Request.STOP}
    assert requests.take() == frozenset()
    assert not requests.asks_to_leave()


def test_a_checkpoint_is_no_reason_to_leave() -> None:
    requests = Requests()
    requests.ask(Request.CHECKPOINT)

    assert not requests.asks_to_leave()


def test_an_abandoned_group_is_left_for_the_first_reason() -> None:
    requests = Requests()
    requests.check_abandoned()
    assert not requests.is_abandoned

    requests.abandon("rank 1 is gone")
    requests.abandon("rank 2 is gone")

    assert requests.is_abandoned
    with pytest.raises(GroupLostError, match="rank 1 is gone"):
        requests.check_abandoned()


def test_what_reacts_to_an_abandoned_group_is_called_once_whenever_it_comes() -> None:
    requests = Requests()
    calls: list[str] = []

    with requests.on_abandon(lambda: calls.append("left before")):
        pass
    with requests.on_abandon(lambda: calls.append("before")):
        requests.abandon("rank 1 is gone")
        requests.abandon("rank 1 is gone")
        with requests.on_abandon(lambda: calls.append("after")):
            pass

    assert calls == ["before", "after"]

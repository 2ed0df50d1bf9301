from __future__ import annotations

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

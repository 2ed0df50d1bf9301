from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from modelscaling.api.modelscaling import API_VERSION, PLURAL
from modelscaling_operator.resync import (
    FINALIZER,
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    TOUCHED_ANNOTATION,
    Lost,
    Resync,
    is_lost,
)
from tests.operator.fake_api import FakeApi, status_answer

if TYPE_CHECKING:
    from modelscaling_operator.kube import Kube

PATH = f"/apis/{API_VERSION}/namespaces/lab/{PLURAL}/tiny"
NOW = datetime(2026, 5, 1, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(*, deleting: bool = False, finalizer: bool = True) -> dict[str, Any]:
    metadata: dict[str, Any] = {"namespace": "lab", "name": "tiny", "uid": "u1"}
    if finalizer:
        metadata["finalizers"] = ["another.example/one", FINALIZER]
    if deleting:
        metadata["deletionTimestamp"] = "2026-05-01T00:00:00Z"
    return {"metadata": metadata}


@pytest.mark.parametrize(
    ("body", "looked_after", "expected"),
    [
        pytest.param(run(finalizer=False), False, True, id="finalizer not put on"),
        pytest.param(run(), False, True, id="loop not started"),
        pytest.param(run(), True, False, id="at work"),
        pytest.param(run(deleting=True), True, False, id="saying farewell"),
        pytest.param(run(deleting=True), False, True, id="finalizer not taken off"),
        pytest.param(run(deleting=True, finalizer=False), False, False, id="others' to let go of"),
    ],
)
def test_a_run_is_lost_when_nobody_looks_after_it_and_kopf_has_something_to_do(
    body: dict[str, Any], *, looked_after: bool, expected: bool
) -> None:
    assert is_lost(body, looked_after=looked_after) is expected


def test_a_run_is_due_after_a_pause_and_then_ever_more_rarely() -> None:
    clock = Clock()
    lost = Lost(clock)
    begin, due_at = clock.now, []

    while clock.now < begin + 2000:
        if lost.note({"u1"}):
            due_at.append(clock.now - begin)
        clock.now += 1

    pauses = [later - earlier for earlier, later in pairwise(due_at)]
    assert due_at[0] == FIRST_PAUSE_S
    assert pauses[:3] == [2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S, 8 * FIRST_PAUSE_S]
    assert max(pauses) == pauses[-1] == LONGEST_PAUSE_S


def test_a_run_that_was_found_again_begins_anew() -> None:
    clock = Clock()
    lost = Lost(clock)

    lost.note({"u1"})
    clock.now += FIRST_PAUSE_S - 1
    lost.note(set())
    lost.note({"u1"})
    clock.now += FIRST_PAUSE_S - 1
    too_early = lost.note({"u1"})
    clock.now += 1

    assert too_early == set()
    assert lost.note({"u1"}) == {"u1"}


async def test_what_is_due_is_touched_and_a_refusal_is_no_error(api: FakeApi, kube: Kube) -> None:
    clock = Clock()
    gone: list[str] = []
    api.objects[PATH] = {"metadata": {"uid": "u1"}}
    resync = Resync(kube, lambda: {"u1": run()}, gone.append, clock=clock, now=lambda: NOW)

    await resync.look()
    asked_at_once = list(api.requests)
    clock.now += FIRST_PAUSE_S
    api.answers = [status_answer(409, "try again")]
    await resync.look()
    clock.now += 2 * FIRST_PAUSE_S
    await resync.look()

    assert asked_at_once == []
    assert gone == []
    assert [(verb, path) for verb, path, _ in api.requests if verb != "GET"] == [
        ("PATCH", PATH)
    ] * 2
    assert api.bodies[-1]["metadata"] == {
        "namespace": "lab",
        "name": "tiny",
        "uid": "u1",
        "annotations": {TOUCHED_ANNOTATION: "2026-05-01T00:00:00+00:00"},
    }


@pytest.mark.parametrize("left", [None, {"metadata": {"uid": "u2"}}])
async def test_what_is_gone_is_forgotten(
    api: FakeApi, kube: Kube, left: dict[str, Any] | None
) -> None:
    clock, gone = Clock(), list[str]()
    if left:
        api.objects[PATH] = left
    resync = Resync(kube, lambda: {"u1": run()}, gone.append, clock=clock, now=lambda: NOW)

    await resync.look()
    clock.now += FIRST_PAUSE_S
    api.answers = [status_answer(409, "uid mismatch")]
    await resync.look()

    assert gone == ["u1"]

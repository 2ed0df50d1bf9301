from __future__ import annotations

from datetime import timedelta

from modelscaling.api.conditions import Reason
from modelscaling.api.status import ModelScalingStatus
from modelscaling_operator.announcement import Announcement, announcements, event_manifest
from tests.operator.world import BEGIN, RUN, World
from tests.shared.spec import make_spec


def told_by(world: World, ticks: int) -> list[str]:
    reasons = []
    for _ in range(ticks):
        before = world.status
        after = world.tick().status
        reasons += [announcement.reason for announcement in announcements(before, after)]
    return reasons


def test_the_life_of_a_run_is_told_once() -> None:
    world = World(spec=make_spec(replicas=2))

    assert told_by(world, 130) == [
        Reason.ACCEPTED,
        Reason.WAITING_FOR_AGENTS,
        Reason.FORMING,
        Reason.TRAINING,
        Reason.COMPLETE,
    ]


def test_a_failure_is_told_as_a_warning_with_its_message() -> None:
    world = World(spec=make_spec(replicas=2))
    for _ in range(10):
        world.tick()
    world.crash(1)
    before = world.status
    after = world.tick().status

    (failure, pause) = announcements(before, after)

    assert (failure.warning, failure.reason) == (True, Reason.POD_FAILED)
    assert failure.message == "pod tiny-1 ended with exit code 1 (Error)"
    assert pause.reason == Reason.BACKING_OFF


def test_an_unchanged_status_tells_nothing() -> None:
    status = ModelScalingStatus()

    assert list(announcements(status, status)) == []


def test_the_same_event_has_the_same_name_within_a_minute() -> None:
    announcement = Announcement(warning=True, reason="PodFailed", message="m" * 2000)
    first = event_manifest(RUN, announcement, BEGIN)
    soon = event_manifest(RUN, announcement, BEGIN + timedelta(seconds=30))
    later = event_manifest(RUN, announcement, BEGIN + timedelta(seconds=61))

    assert first["metadata"] == soon["metadata"] != later["metadata"]
    assert first["type"] == "Warning"
    assert len(first["message"]) == 1024

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from modelscaling.api.conditions import Reason
from modelscaling.api.status import ModelScalingStatus
from modelscaling_operator.announcement import Announcement, announcements, event_manifest
from modelscaling_operator.observation import Obstacle
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

    (failure,) = announcements(before, after)

    assert (failure.warning, failure.reason) == (True, Reason.POD_FAILED)
    assert failure.message == "pod tiny-1 ended with exit code 1 (Error)"


def test_a_lost_node_is_told_as_a_warning_while_another_pod_is_awaited() -> None:
    world = World(spec=make_spec(replicas=2))
    for _ in range(10):
        world.tick()
    world.lose_node(1)
    before = world.status
    after = world.tick().status

    told = [(told.warning, told.reason) for told in announcements(before, after)]

    assert told == [(True, Reason.NODE_LOST)]


def test_what_a_rescale_waits_for_is_told() -> None:
    world = World(spec=make_spec(replicas=2))
    for _ in range(10):
        world.tick()
    world.room = 2
    world.edit(replicas=4)
    world.tick()
    for name in ("tiny-2", "tiny-3"):
        world.pods[name] = replace(
            world.pods[name],
            obstacle=Obstacle(reason=Reason.UNSCHEDULABLE, message="0/3 nodes are available"),
        )
    before = world.status
    after = world.tick().status

    (told,) = announcements(before, after)

    assert (told.warning, told.reason) == (True, Reason.UNSCHEDULABLE)
    assert "dp2 to dp4: 0/3 nodes are available" in told.message


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

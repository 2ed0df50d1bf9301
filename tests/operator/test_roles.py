from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modelscaling.protocol import AgentState
from modelscaling_operator.presence import presences
from modelscaling_operator.roles import Roles, assign_roles
from modelscaling_operator.wish import Wish
from tests.operator.runs import CHECKPOINT, make_world, trained_world
from tests.operator.world import RUN, World, make_pod


def roles_of(world: World) -> Roles:
    seen = world.observe()
    assert isinstance(world.wish, Wish)
    return assign_roles(world.wish, seen, presences(seen, world.now), world.now)


def indexes(pods: tuple[Any, ...]) -> list[int]:
    return [pod.index for pod in pods]


def edit(world: World, **changes: Any) -> None:
    world.edit(**{"replicas": 2, "checkpoint": CHECKPOINT, **changes})


def test_missing_pods_get_the_lowest_indexes_that_nobody_has() -> None:
    world = make_world(replicas=4)
    world.pods["tiny-1"] = make_pod(1, owner_uid="another run of the same name")

    assert roles_of(world).create == (0, 2, 3, 4)


def test_spares_are_created_beyond_the_replicas() -> None:
    world = make_world(replicas=2, elastic={"spares": 2})

    assert roles_of(world).create == (0, 1, 2, 3)


def test_members_stay_members_and_those_outside_the_group_go_first() -> None:
    world = trained_world(replicas=2, elastic={"spares": 2})
    world.drain(0)
    for _ in range(3):
        world.tick()
    assert world.members() == [1, 2]

    edit(world, replicas=1)
    roles = roles_of(world)

    assert indexes(roles.wished) == [1]
    assert set(indexes(roles.surplus)) == {2, 3, 4} & set(indexes(tuple(world.live_pods())))


def test_of_members_the_highest_index_goes_first() -> None:
    world = trained_world(replicas=4)
    edit(world, replicas=2)
    roles = roles_of(world)

    assert (indexes(roles.wished), indexes(roles.surplus)) == ([0, 1], [2, 3])


def test_a_warm_spare_is_taken_before_a_pod_that_only_starts() -> None:
    world = trained_world(replicas=2, elastic={"spares": 1})
    world.vanish(0)
    world.tick(seconds=0)
    assert sorted(world.pods) == ["tiny-0", "tiny-1", "tiny-2"]

    assert indexes(roles_of(world).wished) == [1, 2]


@pytest.mark.parametrize("how", ["is drained", "is lost with its node", "vanishes"])
def test_the_place_of_a_pod_that_goes_is_free_at_once(how: str) -> None:
    world = trained_world()
    match how:
        case "is drained":
            world.drain(1)
        case "is lost with its node":
            world.lose_node(1)
        case _:
            world.vanish(1)

    assert roles_of(world).create == ((1,) if how == "vanishes" else (2,))


def test_a_pod_whose_end_the_kubelet_is_about_to_tell_keeps_its_place() -> None:
    world = trained_world()
    world.kill(1)

    assert world.agent(0).lost == (1,)
    assert roles_of(world).create == ()


def test_a_pod_of_another_template_has_no_role() -> None:
    world = trained_world()
    world.pods["tiny-1"] = replace(world.pods["tiny-1"], revision="older")

    assert indexes(roles_of(world).wished) == [0]


def test_a_silent_member_keeps_its_place_before_a_warm_spare() -> None:
    world = trained_world(replicas=2, elastic={"spares": 1})
    world.cut_off(1)
    roles = roles_of(world)

    assert indexes(roles.wished) == [0, 1]
    assert indexes(roles.able) == [0, 2]


def test_a_starting_agent_is_not_able() -> None:
    world = trained_world()
    world.agents[world.pods[RUN.pod_name(1)].uid].state = AgentState.STARTING

    assert indexes(roles_of(world).able) == [0]

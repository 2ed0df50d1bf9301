"""Pods that do not see the data that the others train on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.status import RunState
from modelscaling.api.validation import parse_spec
from modelscaling.protocol import OpenedData
from modelscaling.resolve import resolve_configuration
from tests.operator.runs import CHECKPOINT, condition, state, trained_world
from tests.shared.spec import make_spec

if TYPE_CHECKING:
    from tests.operator.world import World


def make_data(digest: str, **changes: Any) -> OpenedData:
    configuration = resolve_configuration(parse_spec(make_spec(**changes)))
    return OpenedData(
        data=configuration.data,
        vocabulary_size=configuration.model.vocabulary_size,
        digest=digest,
    )


def world_of(data: OpenedData | None, **changes: Any) -> World:
    """A world whose two pods train on some data."""
    world = trained_world(**changes)
    for agent in world.agents.values():
        agent.data = data
    return world


def run(world: World, newcomer: OpenedData | None, *, ticks: int = 20) -> None:
    """Tick; every pod but the first two sees some data from its start."""
    for _ in range(ticks):
        world.tick()
        for agent in world.agents.values():
            if agent.index > 1:
                agent.data = newcomer


def test_a_pod_that_sees_other_data_is_not_taken_into_the_group_and_says_so() -> None:
    world = world_of(make_data("aaaa"))
    step = world.step
    world.edit(replicas=4, checkpoint=CHECKPOINT)
    run(world, make_data("bbbb"))

    assert world.step == step + 20
    assert world.members() == [0, 1]
    rescaling = condition(world, ConditionType.RESCALING)
    assert rescaling.reason == Reason.DATA_MISMATCH
    assert rescaling.message == (
        "The group changes from dp2 to dp4: pod tiny-2 sees other data in '/data/*.txt' than the "
        "pods that train: the digest of its tokens is bbbb, of theirs aaaa; mount the same files "
        "into all pods, or suspend the run before it goes on with others"
    )

    run(world, make_data("aaaa"), ticks=5)

    assert len(world.members()) == 4
    assert state(world) is RunState.RUNNING


@pytest.mark.parametrize(
    ("trained", "newcomer"),
    [
        pytest.param(make_data("aaaa"), make_data("aaaa"), id="the same"),
        pytest.param(
            make_data("aaaa"),
            make_data("bbbb", data__text={"path": "/new/*.txt"}),
            id="spec.data was edited since",
        ),
        pytest.param(
            make_data("aaaa"),
            make_data("bbbb", model__vocabularySize=1024),
            id="as other tokens",
        ),
        pytest.param(None, make_data("bbbb"), id="those that train do not say"),
        pytest.param(make_data("aaaa"), None, id="it does not say"),
    ],
)
def test_only_what_was_declared_alike_is_compared(
    trained: OpenedData | None, newcomer: OpenedData | None
) -> None:
    world = world_of(trained)
    world.edit(replicas=4, checkpoint=CHECKPOINT)
    run(world, newcomer, ticks=8)

    assert len(world.members()) == 4


def test_a_replacement_that_sees_other_data_waits_and_its_run_is_not_given_up() -> None:
    world = world_of(make_data("aaaa"))
    world.lose_node(1)
    run(world, make_data("bbbb"))

    assert state(world) is RunState.PENDING
    assert condition(world, ConditionType.RUNNING).reason == Reason.DATA_MISMATCH

    run(world, make_data("aaaa"), ticks=5)

    assert state(world) is RunState.RUNNING
    assert world.members() == [0, 2]


def test_a_template_that_mounts_other_data_leaves_the_old_pods_training() -> None:
    world = world_of(make_data("aaaa"))
    step = world.step
    image = {"spec": {"containers": [{"name": "trainer", "image": "trainer:2"}]}}
    world.edit(replicas=2, checkpoint=CHECKPOINT, template=image)
    run(world, make_data("bbbb"))

    assert world.step == step + 20
    assert condition(world, ConditionType.RESCALING).reason == Reason.DATA_MISMATCH

"""A run that begins with the checkpoint of another one."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.status import (
    Condition,
    ConditionStatus,
    InitFromStatus,
    ModelScalingStatus,
    ProgressStatus,
    RunState,
)
from modelscaling_operator.action import CreatePods
from modelscaling_operator.kube import RUNS, Kube, NotFoundError, Resource
from modelscaling_operator.observation import SourceRun
from modelscaling_operator.source_run import awaited_source, find_source
from tests.operator.runs import CHECKPOINT, condition, make_world, state, trained_world
from tests.operator.world import BEGIN, RUN

if TYPE_CHECKING:
    from tests.operator.world import World

INIT_FROM = {"modelScaling": {"name": "small"}}


def make_progress(**changes: Any) -> ProgressStatus:
    fields: dict[str, Any] = {
        "step": 3,
        "total_steps": 8,
        "tokens": 1,
        "sample_digest": "",
        **changes,
    }
    return ProgressStatus(**fields)


def make_status(holds: ConditionType, **progress: Any) -> ModelScalingStatus:
    found = Condition(
        type=holds,
        status=ConditionStatus.TRUE,
        observed_generation=1,
        last_transition_time=BEGIN,
        reason=holds,
        message="",
    )
    return ModelScalingStatus(conditions=(found,), progress=make_progress(**progress))


def make_source(holds: ConditionType, **changes: Any) -> SourceRun:
    fields: dict[str, Any] = {
        "name": "small",
        "uid": "small-uid",
        "volume": CHECKPOINT["volume"],
        "status": make_status(holds),
        **changes,
    }
    return SourceRun(**fields)


def make_waiting(source: SourceRun) -> World:
    world = make_world(model__initFrom=INIT_FROM)
    world.source = source
    return world


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param(SourceRun(name="small"), "There is no ModelScaling small", id="missing"),
        pytest.param(
            make_source(ConditionType.RUNNING),
            r"small, which is not over at step 3 of 8\.$",
            id="it trains",
        ),
        pytest.param(
            make_source(
                ConditionType.RUNNING, status=make_status(ConditionType.RUNNING, checkpoint_step=2)
            ),
            f"is not over at step 3 of 8; to begin with the newest that it has by now, suspend it, "
            f"or create this run anew with model.initFrom.checkpoint.path: the directory "
            f"{RUN.namespace}/small/small-uid of checkpoint.volume, where",
            id="it trains and has saved",
        ),
        pytest.param(
            make_source(ConditionType.ACCEPTED, status=ModelScalingStatus()),
            "which is not over.",
            id="it is new",
        ),
        pytest.param(
            make_source(ConditionType.ACCEPTED, awaits=("middle",)),
            "is not over",
            id="it waits itself",
        ),
        pytest.param(
            make_source(ConditionType.FAILED),
            "small, .* has failed without one",
            id="nothing is left",
        ),
        pytest.param(
            make_source(ConditionType.SUSPENDED),
            "small, .* has been suspended without one; let it go on",
            id="it was suspended before it saved",
        ),
    ],
)
def test_a_run_waits_for_the_one_that_it_begins_with(source: SourceRun, message: str) -> None:
    world = make_waiting(source)
    for _ in range(3):
        decision = world.tick()

    running = condition(world, ConditionType.RUNNING)
    assert (running.status, running.reason) == (
        ConditionStatus.FALSE,
        Reason.WAITING_FOR_INIT_FROM,
    )
    assert re.search(message, running.message)
    assert condition(world, ConditionType.ACCEPTED).status is ConditionStatus.TRUE
    assert (world.pods, world.status.init_from, world.status.start_time) == ({}, None, None)
    assert decision.requeue_s <= 5


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(make_source(ConditionType.COMPLETE), id="complete"),
        pytest.param(
            make_source(
                ConditionType.FAILED, status=make_status(ConditionType.FAILED, checkpoint_step=2)
            ),
            id="failed with a checkpoint",
        ),
        pytest.param(
            make_source(
                ConditionType.SUSPENDED,
                status=make_status(ConditionType.SUSPENDED, checkpoint_step=2),
            ),
            id="suspended with a checkpoint",
        ),
    ],
)
def test_a_run_begins_once_the_other_goes_no_further_and_remembers_it(source: SourceRun) -> None:
    world = make_waiting(make_source(ConditionType.RUNNING))
    world.tick()
    world.source = source

    decision = world.tick()

    assert decision.actions == (
        CreatePods(indexes=(0, 1), image="trainer:1", source_uid="small-uid"),
    )
    assert decision.status.init_from == InitFromStatus(name="small", uid="small-uid")

    world.source = None  # it is deleted, and nobody looks for it
    for _ in range(10):
        world.tick()

    assert state(world) is RunState.RUNNING


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"awaits": ("middle", RUN.name)},
            "tiny waits for small waits for middle waits for tiny, so that none",
            id="a cycle",
        ),
        pytest.param(
            {"volume": {"emptyDir": {}}}, "small saves to {'emptyDir': {}}, and", id="elsewhere"
        ),
        pytest.param({"volume": None}, "small saves to None, and this run to", id="nowhere"),
    ],
)
def test_a_run_that_can_never_begin_is_refused(changes: dict[str, Any], message: str) -> None:
    world = make_waiting(make_source(ConditionType.COMPLETE, **changes))
    world.tick(seconds=60)
    world.tick()

    accepted = condition(world, ConditionType.ACCEPTED)
    assert (accepted.status, accepted.reason) == (ConditionStatus.FALSE, Reason.INVALID_SPEC)
    assert message in accepted.message
    assert accepted.last_transition_time == BEGIN
    assert world.pods == {}


def test_a_run_that_waits_for_itself_is_refused() -> None:
    world = make_waiting(make_source(ConditionType.ACCEPTED))
    world.source = replace(make_source(ConditionType.ACCEPTED), name=RUN.name, awaits=(RUN.name,))
    world.tick()

    assert "tiny waits for tiny, so" in condition(world, ConditionType.ACCEPTED).message


def test_only_a_run_that_has_not_begun_looks_for_the_other() -> None:
    waiting, begun, without = make_world(model__initFrom=INIT_FROM), make_world(), trained_world()
    known = ModelScalingStatus(init_from=InitFromStatus(name="small", uid="small-uid"))

    assert awaited_source(waiting.wish, waiting.status) == "small"
    assert awaited_source(waiting.wish, known) is None
    assert awaited_source(begun.wish, begun.status) is None
    assert awaited_source(without.wish, without.status) is None


class _Runs(Kube):
    """An API server that has some runs."""

    def __init__(self, **runs: dict[str, Any]) -> None:
        self._runs = runs

    async def get(self, resource: Resource, namespace: str, name: str) -> dict[str, Any]:
        assert (resource, namespace) == (RUNS, RUN.namespace)
        if name not in self._runs:
            raise NotFoundError(name)
        return {"metadata": {"uid": f"{name}-uid"}, **self._runs[name]}


def _after(name: str, **status: Any) -> dict[str, Any]:
    return {"spec": {"model": {"initFrom": {"modelScaling": {"name": name}}}}, "status": status}


async def test_a_run_that_is_not_there_has_no_uid() -> None:
    assert await find_source(_Runs(), RUN, "small") == SourceRun(name="small")


async def test_what_a_run_saves_to_and_how_it_stands_is_seen() -> None:
    status = make_status(ConditionType.COMPLETE)
    small = {
        "spec": {"model": {}, "checkpoint": CHECKPOINT},
        "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
    }

    found = await find_source(_Runs(small=small), RUN, "small")

    assert found == make_source(ConditionType.COMPLETE)


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        pytest.param({"small": {"spec": {"model": {}}}}, (), id="it waits for nobody"),
        pytest.param(
            {"small": _after("middle"), "middle": _after("tiny")}, ("middle", "tiny"), id="a cycle"
        ),
        pytest.param(
            {"small": _after("middle"), "middle": _after("small")},
            ("middle", "small"),
            id="a cycle of others",
        ),
        pytest.param({"small": _after("gone")}, ("gone",), id="one that is not there"),
        pytest.param(
            {"small": _after("tiny", initFrom={"name": "tiny", "uid": "old"})},
            (),
            id="one that has begun waits no more",
        ),
    ],
)
async def test_the_line_of_runs_that_wait_is_followed(
    runs: dict[str, Any], expected: tuple[str, ...]
) -> None:
    assert (await find_source(_Runs(**runs), RUN, "small")).awaits == expected

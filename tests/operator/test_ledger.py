from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from modelscaling.api.group_status import GroupStatus, RescaleRecord, RestartStatus
from modelscaling.api.status import ModelScalingStatus, ProgressStatus
from modelscaling.protocol import AgentState, AgentStatus, Resumption, StateSource
from modelscaling_operator.ledger import record_training
from modelscaling_operator.observation import Observation
from tests.operator.runs import CHECKPOINT, trained_world
from tests.operator.world import BEGIN, RUN, make_pod, make_progress

_RESUMED_S = BEGIN.timestamp() + 20


def resumption(**changes: Any) -> Resumption:
    values: dict[str, Any] = {
        "generation": 3,
        "attempt": 1,
        "source": StateSource.MEMORY,
        "step": 40,
        "furthest_step": 41,
        "stopped_time": _RESUMED_S - 0.25,
        "resumed_time": _RESUMED_S,
        "loss_before": 2.5,
        "loss_after": 2.25,
    }
    return Resumption(**{**values, **changes})


def status_of(**changes: Any) -> ModelScalingStatus:
    group: dict[str, Any] = {
        "generation": 3,
        "digest": "d",
        "members": 1,
        "pods": ("pod-0",),
        "mesh": "dp3",
        "cause": "ReplicasChanged",
        "decided_time": BEGIN,
        "stopped_mesh": "dp2",
        "stopped_time": BEGIN + timedelta(seconds=5),
    }
    progress = ProgressStatus(step=39, total_steps=125, tokens=1, sample_digest="d")
    restarts = RestartStatus(last_time=BEGIN + timedelta(seconds=12), generation=3, attempt=1)
    return ModelScalingStatus(
        group=GroupStatus(**{**group, **changes}), progress=progress, restarts=restarts
    )


def after(status: ModelScalingStatus, taken: Resumption | None) -> ModelScalingStatus:
    """Return the status after a look at a group that trains."""
    progress = make_progress(42, resumption=taken)
    agent = AgentStatus(
        run_uid=RUN.uid, index=0, state=AgentState.TRAINING, generation=3, progress=progress
    )
    seen = Observation(
        run=RUN, generation=1, status=status, pods=(make_pod(0),), agents={"pod-0": agent}
    )
    return record_training(status, seen, progress)


def test_a_change_is_entered_with_what_it_cost() -> None:
    (record,) = after(status_of(), resumption()).rescales

    assert record == RescaleRecord(
        time=BEGIN + timedelta(seconds=20),
        cause="ReplicasChanged",
        from_="dp2",
        to="dp3",
        downtime_seconds="0.250",
        lost_steps=1,
        step=40,
        source="Memory",
        loss_before="2.5000",
        loss_after="2.2500",
    )


def test_a_change_is_entered_once_however_often_it_is_seen() -> None:
    once = after(status_of(), resumption())

    assert after(once, resumption()).rescales == once.rescales


def test_a_group_that_forms_again_below_its_number_is_another_entry() -> None:
    once = after(status_of(), resumption())
    twice = after(once, resumption(attempt=2))

    assert [(r.cause, r.from_, r.to) for r in twice.rescales] == [
        ("ReplicasChanged", "dp2", "dp3"),
        ("WorkerReplaced", "dp3", "dp3"),
    ]


@pytest.mark.parametrize(
    ("group", "taken", "entries"),
    [
        pytest.param({}, None, 0, id="nobody has told yet"),
        pytest.param(
            {"stopped_mesh": None, "cause": "Started"},
            resumption(source=StateSource.INITIAL, step=0, furthest_step=0, stopped_time=None),
            0,
            id="the run begins",
        ),
        pytest.param({}, resumption(generation=2), 0, id="an older group's"),
        pytest.param(
            {"stopped_mesh": None, "cause": "Started"},
            resumption(source=StateSource.CHECKPOINT, stopped_time=None),
            0,
            id="the run goes on after it was suspended",
        ),
        pytest.param(
            {"stopped_mesh": None, "cause": "Started"},
            resumption(attempt=2),
            1,
            id="a worker of the first group was replaced",
        ),
        pytest.param({}, resumption(attempt=2), 1, id="the second attempt of a change trained"),
    ],
)
def test_only_changes_of_a_run_that_trains_are_entered(
    group: dict[str, Any], taken: Resumption | None, entries: int
) -> None:
    assert len(after(status_of(**group), taken).rescales) == entries


@pytest.mark.parametrize(
    ("group", "changes", "downtime"),
    [
        pytest.param({}, {"stopped_time": _RESUMED_S + 1}, "0.000", id="clocks that differ"),
        pytest.param({}, {"stopped_time": None}, "15.000", id="nobody is left: as it was seen"),
        pytest.param(
            {"recorded_attempt": 1},
            {"attempt": 2, "stopped_time": None},
            "8.000",
            id="all workers died: since their failure was seen",
        ),
    ],
)
def test_the_downtime_is_counted_from_the_best_that_is_known(
    group: dict[str, Any], changes: dict[str, Any], downtime: str
) -> None:
    (record,) = after(status_of(**group), resumption(**changes)).rescales

    assert record.downtime_seconds == downtime


@pytest.mark.parametrize(
    ("failed", "cause"),
    [
        pytest.param((3, 1), "WorkerReplaced", id="a worker died in the attempt before"),
        pytest.param((2, 9), "GroupBroke", id="a worker died in an older group"),
        pytest.param((0, 0), "GroupBroke", id="no worker died, they lost touch"),
    ],
)
def test_the_cause_of_another_attempt_is_a_worker_or_that_the_pods_lost_touch(
    failed: tuple[int, int], cause: str
) -> None:
    once = after(status_of(), resumption())
    restarts = RestartStatus(generation=failed[0], attempt=failed[1])
    again = once.model_copy(update={"restarts": restarts})
    (_, record) = after(again, resumption(attempt=2)).rescales

    assert record.cause == cause


def test_steps_that_only_the_operator_remembers_are_lost_too() -> None:
    taken = resumption(step=30, furthest_step=30, source=StateSource.CHECKPOINT)
    (record,) = after(status_of(), taken).rescales

    assert (record.lost_steps, record.source) == (9, "Checkpoint")


_NOTHING_LEFT = resumption(
    source=StateSource.INITIAL, step=0, furthest_step=0, stopped_time=None, loss_before=None
)


def test_a_run_that_has_lost_all_it_had_begins_again_and_its_ledger_says_so() -> None:
    (record,) = after(status_of(), _NOTHING_LEFT).rescales

    assert (record.source, record.step, record.lost_steps) == ("Initial", 0, 39)
    assert (record.downtime_seconds, record.loss_before) == ("15.000", None)


@pytest.mark.parametrize(
    ("progress", "causes"),
    [
        pytest.param(None, [], id="before the first step of all"),
        pytest.param(status_of().progress, ["WorkerReplaced"], id="with all that they had"),
    ],
)
def test_the_first_group_whose_workers_all_die_has_lost_what_it_had_done(
    progress: ProgressStatus | None, causes: list[str]
) -> None:
    status = status_of(stopped_mesh=None, cause="Started")
    status = status.model_copy(update={"progress": progress})
    again = _NOTHING_LEFT.model_copy(update={"attempt": 2})

    assert [record.cause for record in after(status, again).rescales] == causes


def test_a_group_has_trained_once_a_member_says_so() -> None:
    status = after(status_of(), None)

    assert status.group is not None
    assert status.group.trained


def test_an_operator_that_was_away_during_a_change_enters_it_once() -> None:
    world = trained_world(replicas=2)
    world.edit(replicas=2, checkpoint=CHECKPOINT, training__learningRate="1e-4")
    world.tick()
    for _ in range(5):
        world.live_on()

    world.tick()
    world.tick()

    assert [record.cause for record in world.status.rescales] == ["SettingsChanged"]


def test_the_ledger_is_bounded_and_keeps_the_newest() -> None:
    status = status_of()
    for attempt in range(1, 30):
        status = after(status, resumption(attempt=attempt, resumed_time=_RESUMED_S + attempt))

    assert len(status.rescales) == 20
    assert status.rescales[-1].time == BEGIN + timedelta(seconds=49)

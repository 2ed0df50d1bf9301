from __future__ import annotations

import pytest

from modelscaling.mesh import Mesh
from modelscaling.protocol import Resumption, StateSource
from modelscaling_trainer.group import Group
from modelscaling_trainer.resumption import History, Origin, Trained, trace

MEMORY, SNAPSHOT, CHECKPOINT, INITIAL = (
    StateSource.MEMORY,
    StateSource.SNAPSHOT,
    StateSource.CHECKPOINT,
    StateSource.INITIAL,
)


class Clock:
    """A clock that shows what it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_group(generation: int = 1, attempt: int = 1) -> Group:
    return Group(
        generation=generation,
        attempt=attempt,
        mesh=Mesh(dataReplicate=2),
        rank=0,
        local_rank=0,
        store_host="127.0.0.1",
        store_port=None,
    )


def trained(step: int, *, generation: int = 1, attempt: int = 1, loss: float = 3.0) -> Trained:
    return Trained(generation=generation, attempt=attempt, step=step, loss=loss)


def origin(
    source: StateSource,
    step: int,
    *,
    furthest: int,
    stopped: float | None,
    loss: float | None,
) -> Origin:
    return Origin(
        source=source,
        step=step,
        furthest_step=furthest,
        stopped_time=stopped,
        loss_before=loss,
    )


@pytest.mark.parametrize(
    ("source", "step", "memories", "expected"),
    [
        pytest.param(
            INITIAL,
            0,
            [(None, 0.0), (None, 0.0)],
            origin(INITIAL, 0, furthest=0, stopped=None, loss=None),
            id="the run begins, or everybody who knew of it is gone",
        ),
        pytest.param(
            MEMORY,
            0,
            [(None, 0.0)],
            origin(MEMORY, 0, furthest=0, stopped=None, loss=None),
            id="a group that broke before its first step",
        ),
        pytest.param(
            CHECKPOINT,
            200,
            [(None, 0.0), (None, 0.0)],
            origin(CHECKPOINT, 200, furthest=200, stopped=None, loss=None),
            id="a run is started again from its checkpoint",
        ),
        pytest.param(
            MEMORY,
            7,
            [(trained(7), 0.25), (trained(7), 0.5), (None, 0.0)],
            origin(MEMORY, 7, furthest=7, stopped=999.5, loss=3.0),
            id="a newcomer joins, and nothing is lost",
        ),
        pytest.param(
            MEMORY,
            6,
            [(trained(7, loss=2.0), 0.25), (trained(6), 0.5)],
            origin(MEMORY, 6, furthest=7, stopped=999.5, loss=2.0),
            id="a step that only some have seen done is done again",
        ),
        pytest.param(
            SNAPSHOT,
            4,
            [(trained(7), 1.0), (None, 0.0)],
            origin(SNAPSHOT, 4, furthest=7, stopped=999.0, loss=3.0),
            id="steps since the snapshot are done again",
        ),
        pytest.param(
            CHECKPOINT,
            2,
            [(trained(7), 1.0), (None, 0.0)],
            origin(CHECKPOINT, 2, furthest=7, stopped=999.0, loss=3.0),
            id="steps since the checkpoint are done again",
        ),
        pytest.param(
            INITIAL,
            0,
            [(trained(7), 1.0)],
            origin(INITIAL, 0, furthest=7, stopped=999.0, loss=3.0),
            id="everything is lost",
        ),
        pytest.param(
            CHECKPOINT,
            9,
            [(trained(7), 1.0), (None, 0.0)],
            origin(CHECKPOINT, 9, furthest=9, stopped=999.0, loss=3.0),
            id="a checkpoint is newer than what anybody has seen",
        ),
        pytest.param(
            MEMORY,
            12,
            [(trained(50), 600.0), (trained(12, generation=2), 1.0)],
            origin(MEMORY, 12, furthest=12, stopped=999.0, loss=3.0),
            id="a pod that was cut off long ago does not count",
        ),
        pytest.param(
            MEMORY,
            9,
            [(trained(10, attempt=1), 60.0), (trained(9, attempt=2), 1.0)],
            origin(MEMORY, 9, furthest=9, stopped=999.0, loss=3.0),
            id="what an earlier attempt lost is not lost twice",
        ),
    ],
)
def test_the_newest_training_says_when_it_stopped_and_how_far_it_was(
    source: StateSource,
    step: int,
    memories: list[tuple[Trained | None, float]],
    expected: Origin,
) -> None:
    assert expected == trace(
        source,
        step,
        [memory for memory, _ in memories],
        idle_seconds=[idle for _, idle in memories],
        now=1000.0,
    )


def test_training_stops_with_its_last_step_where_the_group_parts_well() -> None:
    clock = Clock()
    history = History(clock)
    history.add_step(make_group(), step=5, loss=3.0)
    clock.now = 102.5

    assert history.trained == trained(5)
    assert history.idle_seconds == 2.5


def test_training_stops_when_a_group_breaks_in_a_step() -> None:
    clock = Clock()
    history = History(clock)
    history.add_step(make_group(), step=5, loss=3.0)
    clock.now = 101.0
    history.stop(make_group())
    clock.now = 103.0

    assert history.idle_seconds == 2.0


def test_a_group_that_breaks_before_its_first_step_leaves_the_time_before_it() -> None:
    clock = Clock()
    history = History(clock)
    history.add_step(make_group(), step=5, loss=3.0)
    clock.now = 103.0
    history.stop(make_group(attempt=2))

    assert history.trained == trained(5)
    assert history.idle_seconds == 3.0


def test_what_is_told_names_the_group_that_goes_on() -> None:
    goes_on = origin(SNAPSHOT, 4, furthest=7, stopped=999.0, loss=3.0)

    assert goes_on.resumption(make_group(3, 2), resumed_time=1000.5, loss_after=2.5) == Resumption(
        generation=3,
        attempt=2,
        source=SNAPSHOT,
        step=4,
        furthest_step=7,
        stopped_time=999.0,
        resumed_time=1000.5,
        loss_before=3.0,
        loss_after=2.5,
    )

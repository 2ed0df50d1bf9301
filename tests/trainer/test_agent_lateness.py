from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from modelscaling.mesh import Mesh
from modelscaling.protocol import LateWorker
from modelscaling_trainer.agent.lateness import Lateness, Pace, judge_lateness
from modelscaling_trainer.request import Outcome
from modelscaling_trainer.worker_protocol import (
    Abandon,
    Alive,
    FiguresTaken,
    GroupEnded,
    GroupLost,
    GrowthRejected,
    Join,
    PhaseBegan,
)
from tests.trainer.agent_builders import make_configuration, make_figures, make_rejection

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelscaling_trainer.worker_protocol import Command, Event

_T = TypeVar("_T")


class Life:
    """A worker's messages on a clock of the test's own, which starts at 1000."""

    def __init__(self, *, rank: int = 3) -> None:
        self.now = 1000.0
        self.pace = Pace()
        self.tell(_join(rank))

    def after(self, seconds: float) -> Life:
        self.now += seconds
        return self

    def tell(self, command: Command) -> Life:
        self.pace = self.pace.told(command, now=self.now)
        return self

    def hear(self, *events: Event) -> Life:
        for event in events:
            self.pace = self.pace.heard(event, now=self.now)
        return self

    def train(self, step_seconds: Iterable[float], *, last_step: int = 40) -> Life:
        """Begin to train, and do steps that take so long."""
        self.hear(_phase("Training"))
        for seconds in step_seconds:
            self.after(seconds).hear(_step(last_step))
        return self

    def live(self, seconds: int, *, is_waiting: bool = False) -> Life:
        """Say every second that it is alive."""
        for _ in range(seconds):
            self.after(1.0).hear(Alive(is_waiting=is_waiting))
        return self

    def judge(self) -> Lateness:
        return judge_lateness([self.pace], now=self.now)


def test_a_worker_that_comes_on_is_neither_late_nor_hung() -> None:
    judged = Life().train([0.5] * 5).live(19).judge()

    assert (judged.late, judged.hung) == ((), ())


@pytest.mark.parametrize(
    ("usual_s", "late_after_s", "hung_after_s"),
    [
        pytest.param(0.01, 20, 60, id="short steps: the shortest limits"),
        pytest.param(2.0, 20, 60, id="at the shortest limits"),
        pytest.param(30.0, 300, 600, id="long steps: multiples of them"),
    ],
)
def test_limits_grow_with_the_usual_step(
    usual_s: float, late_after_s: int, hung_after_s: int
) -> None:
    life = Life().train([usual_s] * 3)

    assert life.live(late_after_s - 1).judge().late == ()
    assert life.live(1).judge().late == (
        LateWorker(rank=3, step=40, seconds=float(late_after_s), is_waiting=False),
    )
    assert life.live(hung_after_s - late_after_s - 1).judge().hung == ()
    (hung,) = life.live(1).judge().hung
    assert hung.local_rank == 0
    assert "has not come beyond step 40 (Training)" in hung.message


def test_a_worker_that_waits_for_its_peers_is_late_and_never_hung() -> None:
    judged = Life().train([0.5] * 3).live(10_000, is_waiting=True).judge()

    assert judged.late == (LateWorker(rank=3, step=40, seconds=10_000.0, is_waiting=True),)
    assert judged.hung == ()


def test_a_stopped_process_does_not_wait_for_anybody_and_is_given_up_like_a_hung_one() -> None:
    """SIGSTOP of a rank: what it said last does not hold for ever."""
    life = Life().train([0.5] * 3).live(1, is_waiting=True)

    assert life.after(30).judge().late[0].is_waiting is False
    assert life.judge().hung == ()
    (hung,) = life.after(30).judge().hung
    assert "was not heard of for 60 s" in hung.message


def test_a_stopped_process_is_called_so_also_where_its_step_was_overdue_first() -> None:
    life = Life().train([0.5] * 3).live(1)

    assert life.after(58).judge().hung == ()
    (hung,) = life.after(1).judge().hung
    assert "was not heard of for 59 s" in hung.message


def test_a_worker_that_goes_on_after_being_stopped_is_late_no_more() -> None:
    life = Life().train([0.5] * 3).after(30)
    assert life.judge().late

    assert life.hear(_step(41)).judge().late == ()


@pytest.mark.parametrize("phase", [None, "Forming", "Loading", "Saving", "Validating", "Compiling"])
def test_what_takes_long_by_its_nature_has_a_limit_of_its_own(phase: str | None) -> None:
    life = Life().train([0.5] * 3)
    if phase is None:
        life.hear(GroupLost(generation=2, attempt=1, message="…")).tell(_join(3))
    else:
        life.hear(_phase(phase))

    assert life.live(599).judge().late == ()
    (late,) = life.live(1).judge().late
    assert late.seconds == 600
    assert life.live(1199).judge().hung == ()
    assert life.live(1).judge().hung


@pytest.mark.parametrize("steps", [[], [0.5], [0.5, 0.5]])
def test_the_first_steps_of_a_group_may_take_long(steps: list[float]) -> None:
    life = Life().train(steps)

    assert life.live(599).judge().late == ()
    assert life.live(1).judge().late


def test_a_long_first_step_makes_no_difference_to_what_is_usual() -> None:
    life = Life().train([100.0, 0.5, 0.5])

    assert life.live(20).judge().late


def test_a_validation_within_a_step_is_not_a_part_of_its_time() -> None:
    life = Life()
    for _ in range(3):
        # A step is told after the validation that follows it.
        life.train([]).after(30.0).hear(_phase("Validating")).after(500).train([0.0])

    assert life.live(299).judge().late == ()
    assert life.live(1).judge().late


def test_a_new_group_forgets_how_fast_the_old_one_was() -> None:
    life = Life().train([0.1] * 16)
    life.hear(GroupEnded(generation=2, attempt=1, outcome=Outcome.STOPPED))
    life.tell(_join(3, generation=3)).hear(_phase("Training", generation=3))

    assert life.live(500).judge().late == ()


def test_a_worker_that_waits_for_a_group_is_not_judged() -> None:
    life = Life().train([0.1] * 3).hear(GroupLost(generation=2, attempt=1, message="…"))

    assert life.after(10_000).judge() == Lateness(late=(), hung=(), wake_at=None)


def test_a_worker_that_took_its_growth_back_waits_for_a_group() -> None:
    life = Life().hear(_phase("Training"))
    life.hear(GrowthRejected(generation=2, attempt=1, rejection=make_rejection()))

    assert life.live(3600).pace.group is None


def test_what_a_worker_says_of_an_older_group_shows_only_that_it_lives() -> None:
    life = Life().train([0.1] * 3).after(15)

    life.hear(_step(99, attempt=0), _phase("Saving", generation=1))

    assert life.live(5).judge().late[0].step == 40


@pytest.mark.parametrize(
    ("steps", "patience_s"),
    [
        pytest.param([0.5] * 3, 20, id="while it trains"),
        pytest.param([30.0] * 3, 300, id="while it trains in long steps"),
        pytest.param([], 60, id="before its first step"),
    ],
)
def test_a_worker_that_does_not_leave_when_told_is_given_up(
    steps: list[float], patience_s: int
) -> None:
    life = Life().train(steps).live(1)
    abandon = Abandon(generation=2, attempt=1, why="pod 1 is lost")

    # Told again, its time does not begin again.
    life.tell(abandon).live(patience_s - 1).tell(abandon)
    assert life.judge().hung == ()

    (hung,) = life.live(1).judge().hung
    assert f"did not leave its group within {patience_s} s" in hung.message


def test_a_worker_that_still_waits_for_its_peers_when_told_to_leave_is_given_up_soon() -> None:
    life = Life().train([30.0] * 3).live(100, is_waiting=True)

    life.tell(Abandon(generation=2, attempt=1, why="…")).live(4, is_waiting=True)
    assert life.judge().hung == ()

    (hung,) = life.live(1, is_waiting=True).judge().hung
    assert "did not leave its group within 5 s" in hung.message


def test_a_worker_that_is_not_heard_of_any_more_may_still_leave_when_told() -> None:
    life = Life().train([0.5] * 3).live(10, is_waiting=True)

    life.tell(Abandon(generation=2, attempt=1, why="…")).after(19)
    assert life.judge().hung == ()

    (hung,) = life.after(1).judge().hung
    assert "did not leave its group within 20 s" in hung.message


def test_a_worker_that_left_when_told_is_not_given_up() -> None:
    life = Life().train([0.5] * 3).tell(Abandon(generation=2, attempt=1, why="…"))
    life.hear(GroupLost(generation=2, attempt=1, message="…")).tell(_join(3, attempt=2))

    assert life.live(60).judge().hung == ()


def test_each_worker_is_judged_by_itself() -> None:
    waits, hangs = Life(rank=6).train([0.1] * 3), Life(rank=7).train([0.1] * 3)
    waits.live(60, is_waiting=True)
    hangs.live(60)

    judged = judge_lateness([waits.pace, hangs.pace], now=hangs.now)

    assert [(worker.rank, worker.is_waiting) for worker in judged.late] == [(6, True)]
    assert [hung.local_rank for hung in judged.hung] == [1]


@settings(max_examples=100)  # many are given up
@given(
    steps=st.lists(st.floats(0.01, 60), max_size=20),
    silent_s=st.floats(0, 4000),
    phase=st.sampled_from(["Training", "Loading", "Saving"]),
    is_waiting=st.booleans(),
    is_told_to_leave=st.booleans(),
)
def test_nothing_changes_before_the_time_at_which_it_asks_to_be_woken(
    *, steps: list[float], silent_s: float, phase: str, is_waiting: bool, is_told_to_leave: bool
) -> None:
    life = Life().train(steps).hear(_phase(phase), Alive(is_waiting=is_waiting))
    if is_told_to_leave:
        life.tell(Abandon(generation=2, attempt=1, why="…"))
    judged = life.after(silent_s).judge()
    assume(not judged.hung)
    wake_at = _given(judged.wake_at)
    assert wake_at > life.now

    just_before = judge_lateness([life.pace], now=(life.now + wake_at) / 2)

    assert len(just_before.late) == len(judged.late)
    assert not just_before.hung


def _given(value: _T | None) -> _T:
    assert value is not None
    return value


def _join(rank: int, *, generation: int = 2, attempt: int = 1) -> Join:
    return Join(
        generation=generation,
        attempt=attempt,
        mesh=Mesh(dataReplicate=8),
        leavers=0,
        rank=rank,
        local_rank=0,
        store_host="10.0.0.1",
        store_port=4242 if rank else None,
        configuration=make_configuration(),
    )


def _phase(phase: str, *, generation: int = 2) -> PhaseBegan:
    return PhaseBegan(generation=generation, attempt=1, phase=phase)


def _step(step: int, *, attempt: int = 1) -> FiguresTaken:
    return FiguresTaken(generation=2, attempt=attempt, figures=make_figures(step))

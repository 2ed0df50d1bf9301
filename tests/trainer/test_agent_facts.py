from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from modelscaling.exit_code import ExitCode
from modelscaling.protocol import AgentState, StopMode
from modelscaling_trainer.agent.decision import decide
from modelscaling_trainer.agent.facts import Facts, WorkerFacts, WorkerState
from modelscaling_trainer.request import Outcome
from modelscaling_trainer.worker_protocol import (
    FiguresTaken,
    GroupEnded,
    GroupLost,
    PhaseBegan,
    ProgressMade,
    StoreOpened,
    Warm,
    WorkerFailed,
)
from tests.trainer.agent_builders import make_figures, make_placement, make_progress

if TYPE_CHECKING:
    from modelscaling_trainer.worker_protocol import Event

DEADLINE = 10.0
FIGURES = make_figures()


def warm(processes: int = 1) -> Facts:
    """An agent whose workers wait for a group."""
    facts = Facts(workers=(WorkerFacts(),) * processes)
    for local_rank in range(processes):
        facts = hear(facts, Warm(), local_rank)
    return facts


def hear(facts: Facts, event: Event, local_rank: int = 0) -> Facts:
    return facts.heard(local_rank, event, failure_deadline=DEADLINE)


def carry_out(facts: Facts) -> Facts:
    """The facts after all that is decided now has been done."""
    while commands := decide(facts, 0.0).commands:
        for local_rank, command in commands:
            facts = facts.told(local_rank, command)
    return facts


def training(generation: int = 1) -> Facts:
    """An agent of one process that leads a group of two pods and trains in it."""
    facts = warm().obeying(make_placement(1, 1, generation=generation), deadline=DEADLINE)
    facts = carry_out(facts)
    return hear(facts, PhaseBegan(generation=generation, phase="Training"))


def test_the_life_of_a_group_shows_in_the_state() -> None:
    states = []
    facts = Facts(workers=(WorkerFacts(),))
    states.append(facts.state())
    facts = hear(facts, Warm())
    states.append(facts.state())
    facts = facts.obeying(make_placement(1, 1), deadline=DEADLINE)
    states.append(facts.state())
    facts = carry_out(facts)
    for phase in ("Forming", "Loading", "Training", "Saving"):
        facts = hear(facts, PhaseBegan(generation=1, phase=phase))
        states.append(facts.state())
    facts = hear(facts, GroupEnded(generation=1, outcome=Outcome.STOPPED))
    states.append(facts.state())

    assert states == [
        AgentState.STARTING,
        AgentState.WARM,
        AgentState.FORMING,
        AgentState.FORMING,
        AgentState.FORMING,
        AgentState.TRAINING,
        AgentState.TRAINING,
        AgentState.WARM,
    ]


def test_a_pod_is_warm_when_its_last_worker_is() -> None:
    facts = hear(Facts(workers=(WorkerFacts(),) * 2), Warm(), local_rank=1)
    assert facts.state() is AgentState.STARTING

    assert hear(facts, Warm(), local_rank=0).state() is AgentState.WARM


def test_a_new_assignment_is_forming_while_the_old_group_still_trains() -> None:
    facts = training(generation=1).obeying(make_placement(1, generation=2), deadline=DEADLINE)

    assert facts.state() is AgentState.FORMING
    assert facts.generation == 2


def test_a_lost_group_leaves_the_agent_warm_with_the_reason_until_the_next_one() -> None:
    facts = hear(training(), GroupLost(generation=1, message="rank 1 is gone"))

    assert facts.state() is AgentState.WARM
    assert facts.failure is not None
    assert (facts.failure.reason, facts.failure.rank) == ("GroupLost", 0)
    assert not facts.is_pending()
    assert facts.obeying(make_placement(1, generation=2), deadline=DEADLINE).failure is None


def test_the_loss_of_an_older_group_says_nothing_of_the_new_one() -> None:
    facts = training(generation=1).obeying(make_placement(1, generation=2), deadline=DEADLINE)

    facts = hear(facts, GroupLost(generation=1, message="rank 1 is gone"))

    assert facts.failure is None
    assert facts.is_pending()


def test_only_the_pod_with_rank_0_knows_the_progress() -> None:
    leader = hear(training(), ProgressMade(generation=1, progress=make_progress(step=3)))
    assert leader.progress == make_progress(step=3)

    follower = leader.obeying(make_placement(1, 1, index=1, generation=2), deadline=DEADLINE)
    assert follower.progress is None

    again = leader.obeying(make_placement(1, 1, generation=2), deadline=DEADLINE)
    assert again.progress == make_progress(step=3)


def test_the_store_of_an_older_group_is_not_taken_for_the_new_one() -> None:
    facts = training(generation=1).obeying(make_placement(1, generation=2), deadline=DEADLINE)

    assert hear(facts, StoreOpened(generation=1, port=4242)).store_port is None
    assert hear(facts, StoreOpened(generation=2, port=4242)).store_port == 4242


@pytest.mark.parametrize(
    ("event", "has_trained"),
    [
        pytest.param(PhaseBegan(generation=1, phase="Loading"), False, id="loading"),
        pytest.param(FiguresTaken(generation=1, figures=FIGURES), True, id="a step on any rank"),
        pytest.param(
            ProgressMade(generation=1, progress=make_progress()), True, id="a step on rank 0"
        ),
    ],
)
def test_a_worker_holds_unsaved_steps_once_it_has_made_one(
    event: Event, *, has_trained: bool
) -> None:
    assert hear(training(), event).workers[0].has_trained is has_trained


def test_the_first_failure_is_the_cause() -> None:
    facts = hear(
        training(),
        WorkerFailed(exit_code=ExitCode.DIVERGED, reason="Diverged", message="loss is nan"),
    )

    facts = facts.lost_worker(0, message="worker 0 ended with exit code 1", deadline=DEADLINE)

    assert facts.is_failed
    assert facts.failure is not None
    assert (facts.failure.exit_code, facts.failure.reason) == (ExitCode.DIVERGED, "Diverged")
    assert facts.workers[0].state is WorkerState.GONE


def test_a_group_that_was_lost_before_a_worker_died_does_not_hide_the_death() -> None:
    facts = warm(processes=2).obeying(make_placement(2), deadline=DEADLINE)
    facts = hear(carry_out(facts), GroupLost(generation=1, message="rank 1 is gone"))

    facts = facts.lost_worker(1, message="worker 1 was killed by SIGKILL", deadline=DEADLINE)

    assert facts.is_failed
    assert facts.failure is not None
    assert facts.failure.reason == "WorkerDied"


def test_a_worker_that_dies_before_it_joins_has_no_rank() -> None:
    facts = warm().lost_worker(0, message="worker 0 was killed by SIGKILL", deadline=DEADLINE)

    assert facts.failure is not None
    assert facts.failure.rank is None


def test_sigterm_after_a_stop_shortens_the_deadline_and_never_lengthens_it() -> None:
    asked = training().stopping(StopMode.RELEASE, generation=2, deadline=300.0)
    assert asked.deadline == 300.0

    assert asked.stopping(StopMode.RELEASE, generation=2, deadline=25.0).deadline == 25.0
    hurried = asked.stopping(StopMode.RELEASE, generation=2, deadline=25.0)
    assert hurried.stopping(StopMode.RELEASE, generation=2, deadline=40.0).deadline == 25.0


def test_a_group_that_does_not_come_about_is_given_up() -> None:
    facts = warm().obeying(make_placement(1, 1, index=1), deadline=DEADLINE)
    assert facts.needs_store()

    given_up = facts.giving_up(generation=1, message="the leader is silent")

    assert given_up.state() is AgentState.WARM
    assert not given_up.needs_store()
    assert given_up.failure is not None
    assert facts.giving_up(generation=0, message="an older lookup") == facts


def test_nobody_is_asked_for_the_store_by_the_leader_or_after_a_stop() -> None:
    assert not warm().obeying(make_placement(1, 1), deadline=DEADLINE).needs_store()

    follower = warm().obeying(make_placement(1, 1, index=1), deadline=DEADLINE)
    assert not follower.stopping(StopMode.SUSPEND, generation=1, deadline=DEADLINE).needs_store()
    assert not follower.knowing_store(generation=1, port=4242).needs_store()

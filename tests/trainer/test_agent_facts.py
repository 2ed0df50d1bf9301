from __future__ import annotations

import pytest

from modelscaling.exit_code import ExitCode
from modelscaling.protocol import AgentState, StopMode
from modelscaling_trainer.agent.decision import decide
from modelscaling_trainer.agent.facts import Facts
from modelscaling_trainer.agent.worker_facts import WorkerFacts, WorkerState
from modelscaling_trainer.request import Outcome
from modelscaling_trainer.worker_protocol import (
    Alive,
    FiguresTaken,
    GroupEnded,
    GroupLost,
    GrowthRejected,
    PhaseBegan,
    StoreOpened,
    Warm,
    WorkerFailed,
)
from tests.trainer.agent_builders import make_placement, make_rejection
from tests.trainer.facts_builders import (
    DEADLINE,
    DIED,
    FIGURES,
    NOW,
    carry_out,
    following,
    hear,
    lose,
    lost,
    replace_worker,
    store,
    training,
    warm,
)

# What an agent says that it does


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
        facts = hear(facts, PhaseBegan(generation=1, attempt=1, phase=phase))
        states.append(facts.state())
    facts = hear(facts, GroupEnded(generation=1, attempt=1, outcome=Outcome.STOPPED))
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


def test_a_group_that_broke_is_being_formed_until_it_trains_again() -> None:
    lost_group = hear(training(), lost())
    died = lose(training())
    again = carry_out(lost_group, now=NOW)
    loading = hear(again, PhaseBegan(generation=1, attempt=2, phase="Loading"))
    trains = hear(again, PhaseBegan(generation=1, attempt=2, phase="Training"))

    for facts in (
        lost_group,
        died,
        died.starting(0),
        again,
        loading,
    ):
        assert facts.state() is AgentState.FORMING
    assert trains.state() is AgentState.TRAINING


def test_a_worker_that_is_replaced_while_it_waits_makes_the_pod_start_again() -> None:
    facts = lose(warm())
    assert facts.state() is AgentState.STARTING
    assert facts.failure == DIED

    facts = replace_worker(facts)
    assert facts.state() is AgentState.WARM
    assert facts.failure is None


# Workers that die


def test_a_dead_worker_breaks_its_attempt_and_its_siblings_are_to_leave_it() -> None:
    facts = warm(processes=2).obeying(make_placement(2, 1), deadline=DEADLINE)
    facts = carry_out(hear(carry_out(facts), StoreOpened(generation=1, attempt=1, port=4242)))

    facts = lose(facts, local_rank=1)

    assert not facts.is_failed
    assert facts.worker_failures == 1
    assert facts.failure == DIED
    assert facts.workers[0].broken_because == DIED.message
    assert facts.awaited_attempt == 2


def test_a_group_that_was_lost_before_a_worker_died_does_not_hide_the_death() -> None:
    facts = lose(hear(training(), lost()))

    assert facts.failure == DIED
    assert facts.breaks == 1


def test_a_lost_group_does_not_hide_the_death_that_it_was_lost_by() -> None:
    facts = warm(processes=2).obeying(make_placement(2, 1), deadline=DEADLINE)
    facts = carry_out(hear(carry_out(facts), StoreOpened(generation=1, attempt=1, port=4242)))

    facts = hear(lose(facts, local_rank=1), lost())

    assert facts.failure == DIED


def test_a_checkpoint_that_cannot_be_written_costs_no_worker_and_is_tried_again() -> None:
    full = GroupLost(generation=1, attempt=1, message="no room", reason="CheckpointFailed")

    facts = hear(training(), full)

    assert facts.failure is not None
    assert facts.failure.reason == "CheckpointFailed"
    assert facts.worker_failures == 0
    assert carry_out(facts, now=NOW).workers[0].attempt == 2


def test_the_failure_is_told_until_the_next_step() -> None:
    facts = carry_out(replace_worker(lose(training())), now=NOW)
    assert facts.failure == DIED

    assert hear(facts, Alive(is_waiting=False)).failure == DIED
    assert hear(facts, FiguresTaken(generation=1, attempt=2, figures=FIGURES)).failure is None


def test_a_worker_is_not_lost_twice() -> None:
    failed = WorkerFailed(exit_code=ExitCode.CRASHED, reason="WorkerFailed", message="a bug")
    facts = hear(training(), failed)

    assert lose(facts) == facts
    assert facts.worker_failures == 1
    assert facts.failure is not None
    assert facts.failure.reason == "WorkerFailed"


@pytest.mark.parametrize("exit_code", [ExitCode.DIVERGED, ExitCode.CONFIGURATION])
def test_what_a_retry_would_meet_again_ends_the_agent(exit_code: ExitCode) -> None:
    facts = hear(
        training(), WorkerFailed(exit_code=exit_code, reason="Diverged", message="loss is nan")
    )

    facts = lose(facts)

    assert facts.is_failed
    assert facts.failure is not None
    assert (facts.failure.exit_code, facts.failure.reason) == (exit_code, "Diverged")
    assert facts.workers[0].state is WorkerState.GONE


def test_workers_that_never_get_warm_end_the_agent() -> None:
    facts = warm()
    delays = []
    while not facts.is_failed:
        facts = lose(facts.starting(0))
        delays.append(facts.workers[0].start_delay_s)

    assert delays == [1, 2, 4]
    assert facts.failure == DIED


def test_a_worker_that_was_warm_is_replaced_at_once_however_often() -> None:
    facts = training()
    for _ in range(5):
        facts = replace_worker(lose(facts))
        assert facts.workers[0].start_delay_s == 0

    assert not facts.is_failed
    assert facts.worker_failures == 5


def test_a_worker_that_dies_before_it_joins_breaks_nothing() -> None:
    facts = warm().obeying(make_placement(1, 1), deadline=DEADLINE)
    assert facts.rank_of(0) is None

    facts = lose(facts)

    assert facts.awaited_attempt == 1
    assert carry_out(replace_worker(facts)).workers[0].attempt == 1


def test_the_replacement_of_a_worker_whose_group_had_ended_joins_nothing() -> None:
    facts = hear(training(), GroupEnded(generation=1, attempt=1, outcome=Outcome.STOPPED))

    facts = replace_worker(lose(facts))

    assert not facts.is_pending()


# Stopping and leaving


def test_sigterm_after_a_stop_shortens_the_deadline_and_never_lengthens_it() -> None:
    asked = training().stopping(StopMode.RELEASE, generation=2, deadline=300.0)
    assert asked.deadline == 300.0

    assert asked.stopping(StopMode.RELEASE, generation=2, deadline=25.0).deadline == 25.0
    hurried = asked.stopping(StopMode.RELEASE, generation=2, deadline=25.0)
    assert hurried.stopping(StopMode.RELEASE, generation=2, deadline=40.0).deadline == 25.0


def test_a_stop_after_sigterm_has_no_more_time_than_the_pod() -> None:
    facts = training().leaving(leave_by=25.0, end_by=50.0)

    assert facts.state() is AgentState.TRAINING
    assert facts.stopping(StopMode.SUSPEND, generation=1, deadline=300.0).deadline == 50.0


def leaver() -> Facts:
    """An agent of one process that leaves a group of one other."""
    placement = make_placement(1, 1, index=1, leaving=1, generation=2)
    return following(generation=1).obeying(placement, deadline=DEADLINE)


def test_a_pod_that_leaves_is_done_when_its_worker_is_released() -> None:
    facts = carry_out(leaver())
    assert not facts.is_done_leaving()
    facts = hear(facts, GroupEnded(generation=1, attempt=1, outcome=Outcome.STOPPED))
    facts = carry_out(facts.knowing_store(store(generation=2, with_leaving=True)))
    assert facts.workers[0].state is WorkerState.BUSY

    facts = hear(facts, GroupEnded(generation=2, attempt=1, outcome=Outcome.RELEASED))

    assert facts.is_done_leaving()


def test_a_pod_whose_state_was_handed_over_before_it_knew_is_done() -> None:
    facts = hear(leaver(), GroupEnded(generation=1, attempt=1, outcome=Outcome.STOPPED))

    facts = facts.knowing_store(store(generation=2, attempt=2, with_leaving=False))

    assert facts.is_done_leaving()
    assert not facts.is_pending()


def test_a_leader_awaits_the_pods_that_leave_until_its_group_has_trained() -> None:
    facts = warm().obeying(make_placement(1, 1, leaving=1), deadline=DEADLINE)
    facts = carry_out(facts)
    assert facts.with_leaving
    broken = carry_out(hear(facts, lost()), now=NOW)
    assert broken.with_leaving

    facts = hear(broken, PhaseBegan(generation=1, attempt=2, phase="Training"))

    facts = carry_out(hear(facts, lost(attempt=2)), now=NOW + 60)
    assert facts.attempt == 3
    assert not facts.with_leaving


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
    assert not follower.knowing_store(store()).needs_store()


# A growth that is taken back


def rejected(generation: int = 1, attempt: int = 1) -> GrowthRejected:
    return GrowthRejected(generation=generation, attempt=attempt, rejection=make_rejection())


def test_a_group_that_took_its_growth_back_is_not_formed_again() -> None:
    facts = hear(training(), rejected())
    facts = facts.breaking(1, 1, why="another member was lost in it", now=NOW)

    assert facts.growth_rejection == make_rejection()
    assert facts.state() is AgentState.WARM
    assert facts.failure is None
    assert decide(facts, NOW + 100).commands == ()


def test_the_next_group_is_joined_after_a_growth_that_was_taken_back() -> None:
    facts = hear(training(), rejected())
    facts = facts.obeying(make_placement(1, 1, generation=2), deadline=DEADLINE)

    assert facts.growth_rejection is None
    assert facts.state() is AgentState.FORMING
    assert len(decide(facts, NOW).commands) == 1


def test_the_growth_of_an_older_group_says_nothing_of_the_newest() -> None:
    facts = training().obeying(make_placement(1, 1, generation=2), deadline=DEADLINE)
    facts = hear(facts, rejected())

    assert facts.growth_rejection is None
    assert facts.workers[0].state is WorkerState.IDLE
    assert len(decide(facts, NOW).commands) == 1

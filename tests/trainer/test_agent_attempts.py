"""The attempts of a group: what breaks one, whose words about which count, and the pauses."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from modelscaling_trainer.agent.decision import decide
from modelscaling_trainer.agent.worker_facts import WorkerState
from modelscaling_trainer.request import Outcome
from modelscaling_trainer.worker_protocol import (
    FiguresTaken,
    GroupEnded,
    Join,
    PhaseBegan,
    ProgressMade,
    StoreOpened,
)
from tests.trainer.agent_builders import make_placement, make_progress
from tests.trainer.facts_builders import (
    DEADLINE,
    FIGURES,
    NOW,
    carry_out,
    following,
    hear,
    lose,
    lost,
    progress,
    store,
    training,
    warm,
)

if TYPE_CHECKING:
    from modelscaling_trainer.agent.facts import Facts
    from modelscaling_trainer.worker_protocol import Event


def test_a_leader_meets_again_at_once_when_its_group_is_lost() -> None:
    facts = hear(training(), lost())

    assert facts.failure is not None
    assert (facts.failure.reason, facts.failure.rank) == ("GroupLost", 0)
    again = carry_out(facts, now=NOW)
    assert (again.attempt, again.workers[0].attempt) == (2, 2)
    assert again.workers[0].state is WorkerState.BUSY


def test_a_member_asks_for_the_next_attempt_when_its_group_is_lost() -> None:
    facts = hear(following(), lost())
    assert facts.needs_store()
    assert facts.awaited_attempt == 2

    told = carry_out(facts.knowing_store(store(attempt=3)), now=NOW)

    assert told.workers[0].attempt == told.attempt == 3
    assert not told.needs_store()


def test_the_store_of_a_broken_attempt_is_not_taken() -> None:
    facts = hear(following(), lost())

    assert facts.knowing_store(store(attempt=1)) == facts


def test_a_member_learns_that_its_attempt_is_broken_before_its_worker_does() -> None:
    facts = following().breaking(1, 1, why="pod 0 fell silent", now=NOW)

    assert facts.needs_store()
    assert facts.workers[0].broken_because == "pod 0 fell silent"
    assert hear(facts, lost()).workers[0].broken_because is None


def test_what_is_said_of_an_attempt_twice_breaks_it_once() -> None:
    once = training().breaking(1, 1, why="pod 1 fell silent", now=NOW)
    twice = once.breaking(1, 1, why="pod 1 asks for attempt 2", now=NOW + 1)

    assert twice == once
    assert hear(once, lost()).breaks == 1


def test_an_attempt_that_has_not_begun_yet_is_not_broken_by_those_who_ask_for_it() -> None:
    facts = warm().obeying(make_placement(1, 1), deadline=DEADLINE)

    assert facts.breaking(1, 0, why="pod 1 asks for attempt 1", now=NOW) == facts


def test_a_new_group_begins_with_its_first_attempt() -> None:
    facts = hear(training(), lost()).obeying(make_placement(1, 1, generation=2), deadline=DEADLINE)

    assert (facts.attempt, facts.awaited_attempt, facts.failure) == (0, 1, None)
    assert carry_out(facts).workers[0].attempt == 1


def test_a_new_assignment_forgets_which_indexes_were_lost_or_unreachable() -> None:
    facts = replace(training(), lost=frozenset({1}), unreachable=frozenset({2}))
    facts = facts.obeying(make_placement(1, 1, generation=2), deadline=DEADLINE)

    assert (facts.lost, facts.unreachable) == (frozenset(), frozenset())


def test_the_loss_of_an_older_group_says_nothing_of_the_new_one() -> None:
    facts = training(generation=1).obeying(make_placement(1, generation=2), deadline=DEADLINE)

    facts = hear(facts, lost(generation=1))

    assert facts.failure is None
    assert facts.awaited_attempt == 1
    assert facts.is_pending()


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(lost(attempt=1), id="it was lost"),
        pytest.param(progress(step=9, attempt=1), id="a step"),
        pytest.param(FiguresTaken(generation=1, attempt=1, figures=FIGURES), id="figures"),
        pytest.param(StoreOpened(generation=1, attempt=1, port=4242), id="its store"),
        pytest.param(PhaseBegan(generation=1, attempt=1, phase="Saving"), id="a phase"),
        pytest.param(GroupEnded(generation=1, attempt=1, outcome=Outcome.COMPLETE), id="it ended"),
    ],
)
def test_what_a_worker_says_of_an_attempt_that_it_has_left_changes_nothing(event: Event) -> None:
    facts = carry_out(hear(training(), lost()), now=NOW)

    assert hear(facts, event) == facts


def test_only_the_pod_with_rank_0_knows_the_progress() -> None:
    leader = hear(training(), progress(step=3))
    assert leader.progress == make_progress(step=3)

    follower = leader.obeying(make_placement(1, 1, index=1, generation=2), deadline=DEADLINE)
    assert follower.progress is None

    again = leader.obeying(make_placement(1, 1, generation=2), deadline=DEADLINE)
    assert again.progress == make_progress(step=3)


def test_the_store_of_an_older_group_is_not_taken_for_the_new_one() -> None:
    facts = training(generation=1).obeying(make_placement(1, generation=2), deadline=DEADLINE)
    assert hear(facts, StoreOpened(generation=1, attempt=1, port=4242)).store_port is None

    facts = carry_out(hear(facts, GroupEnded(generation=1, attempt=1, outcome=Outcome.STOPPED)))

    assert hear(facts, StoreOpened(generation=2, attempt=1, port=4242)).store_port == 4242


def test_a_worker_may_hold_unsaved_steps_from_the_moment_at_which_it_has_taken_them_over() -> None:
    facts = carry_out(warm().obeying(make_placement(1, 1), deadline=DEADLINE))
    held = []
    for phase in ("Forming", "Loading", "Training", "Saving"):
        facts = hear(facts, PhaseBegan(generation=1, attempt=1, phase=phase))
        held.append(facts.workers[0].may_hold_steps)

    assert held == [False, False, True, True]
    assert hear(facts, lost()).workers[0].may_hold_steps
    assert not lose(facts).workers[0].may_hold_steps


@pytest.mark.parametrize(
    ("decided", "since", "known"), [(None, None, None), (None, 6, 6), (4, None, 4), (4, 6, 6)]
)
def test_the_next_attempt_knows_of_the_checkpoints_since_the_group_was_decided(
    decided: int | None, since: int | None, known: int | None
) -> None:
    placement = make_placement(1, 1)
    told = placement.assignment.model_copy(update={"checkpoint_step": decided})
    facts = warm().obeying(replace(placement, assignment=told), deadline=DEADLINE)
    saved = make_progress(7, checkpoint_step=since)
    facts = hear(carry_out(facts), ProgressMade(generation=1, attempt=1, progress=saved))
    facts = hear(facts, lost())
    (joined,) = (command for _, command in decide(facts, NOW).commands)

    assert isinstance(joined, Join)
    assert (joined.attempt, joined.checkpoint_step) == (2, known)


# Back-off


def break_again(facts: Facts, attempt: int, now: float) -> Facts:
    return facts.breaking(1, attempt, why="rank 1 is gone", now=now)


def test_each_attempt_that_fails_without_a_step_holds_the_next_one_back_longer() -> None:
    facts = training()
    waits = []
    for attempt in range(1, 10):
        facts = break_again(facts, attempt, now=100.0)
        waits.append(facts.begin_at - 100.0)

    assert waits == [0, 1, 2, 4, 8, 16, 32, 60, 60]


def test_a_step_that_is_new_ends_the_back_off_and_one_that_is_redone_does_not() -> None:
    facts = hear(training(), progress(step=3))
    facts = carry_out(break_again(facts, 1, now=NOW), now=NOW)
    facts = hear(facts, lost(attempt=1))
    facts = carry_out(facts, now=NOW)
    assert facts.attempt == 2

    assert hear(facts, progress(step=3, attempt=2)).breaks == 1
    assert hear(facts, progress(step=4, attempt=2)).breaks == 0

"""An agent that was told to stop, and whose group could not save what it holds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from modelscaling.exit_code import ExitCode
from modelscaling.protocol import StopMode
from modelscaling_trainer.agent.decision import decide
from modelscaling_trainer.request import Outcome, Request
from modelscaling_trainer.worker_protocol import (
    CHECKPOINT_FAILED,
    FiguresTaken,
    GroupEnded,
    GroupLost,
    PhaseBegan,
)
from tests.trainer.agent_builders import make_placement
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
    training,
    warm,
)

if TYPE_CHECKING:
    from modelscaling_trainer.agent.facts import Facts


def stopping(facts: Facts) -> Facts:
    """The facts once the workers have been asked to save."""
    return carry_out(facts.stopping(StopMode.SUSPEND, generation=1, deadline=DEADLINE), NOW)


def full(attempt: int = 1) -> GroupLost:
    return GroupLost(generation=1, attempt=attempt, message="no room", reason=CHECKPOINT_FAILED)


def phase(name: str, attempt: int = 2) -> PhaseBegan:
    return PhaseBegan(generation=1, attempt=attempt, phase=name)


def unsaved() -> Facts:
    return hear(stopping(hear(training(), progress(step=5))), full())


def asked(facts: Facts) -> frozenset[Request]:
    return facts.workers[0].asked


def test_a_group_that_could_not_save_meets_again_and_is_asked_to_once_it_trains() -> None:
    facts = carry_out(unsaved(), NOW)
    loading = carry_out(hear(facts, phase("Loading")), NOW)

    assert facts.workers[0].attempt == 2
    assert asked(loading) == frozenset()
    assert decide(loading, NOW).exit_code is None

    trains = carry_out(hear(loading, phase("Training")), NOW)

    assert asked(trains) == {Request.STOP}
    assert decide(trains, NOW).exit_code is None


def test_what_was_taken_over_is_saved_also_where_no_step_was_done_since() -> None:
    facts = stopping(training())

    assert asked(facts) == {Request.STOP}
    assert decide(facts, NOW).exit_code is None


def test_an_agent_whose_group_could_save_at_last_ends_without_a_failure() -> None:
    facts = carry_out(hear(carry_out(unsaved(), NOW), phase("Training")), NOW)
    facts = hear(facts, progress(step=6, attempt=2))
    facts = hear(facts, GroupEnded(generation=1, attempt=2, outcome=Outcome.STOPPED))

    assert facts.failure is None
    assert decide(facts, NOW).exit_code is ExitCode.INTERRUPTED


def test_saves_that_fail_are_tried_again_ever_later_whatever_steps_are_done_between() -> None:
    waits = []
    facts = unsaved()
    for attempt in (2, 3, 4):
        waits.append(facts.begin_at - NOW)
        facts = carry_out(facts, facts.begin_at)
        facts = carry_out(hear(facts, phase("Training", attempt)), NOW)
        facts = hear(hear(facts, progress(step=5 + attempt, attempt=attempt)), full(attempt))

    assert waits == [0.0, 1.0, 2.0]


def test_an_agent_that_could_not_save_in_time_ends_with_the_reason() -> None:
    facts = unsaved()

    assert decide(facts, NOW).exit_code is None
    assert decide(facts, DEADLINE).exit_code is ExitCode.INTERRUPTED
    assert facts.failure is not None
    assert (facts.failure.reason, facts.failure.message) == (CHECKPOINT_FAILED, "no room")
    assert facts.progress is not None
    assert facts.progress.checkpoint_failure == "no room"


def test_the_other_pods_ask_the_first_one_where_the_group_meets_again() -> None:
    trained = hear(following(), FiguresTaken(generation=1, attempt=1, figures=FIGURES))
    facts = stopping(trained)

    assert not hear(facts, lost()).needs_store()
    assert hear(facts, full()).needs_store()


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param(hear(stopping(hear(training(), progress(5))), lost()), id="a peer is lost"),
        pytest.param(lose(unsaved()), id="the worker that held it has died"),
        pytest.param(
            hear(
                carry_out(warm().obeying(make_placement(1, 1), deadline=DEADLINE)).stopping(
                    StopMode.SUSPEND, generation=1, deadline=DEADLINE
                ),
                full(),
            ),
            id="it has never trained",
        ),
        pytest.param(
            unsaved().giving_up(generation=1, message="the others have gone on"),
            id="the group does not meet again",
        ),
    ],
)
def test_an_agent_with_nothing_that_it_could_save_ends_at_once(facts: Facts) -> None:
    assert decide(facts, NOW).exit_code is ExitCode.INTERRUPTED


def test_a_run_that_nobody_watches_is_given_up_when_it_cannot_be_saved_again_and_again() -> None:
    facts = replace(unsaved(), breaks=3)

    assert decide(facts, NOW).failure is None
    assert decide(facts, NOW, most_breaks=3).failure == facts.failure

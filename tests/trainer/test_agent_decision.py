from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modelscaling.exit_code import ExitCode
from modelscaling.protocol import Failure, StopMode, StoreAddress
from modelscaling_trainer.agent.decision import Decision, decide
from modelscaling_trainer.agent.facts import Facts
from modelscaling_trainer.agent.worker_facts import WorkerFacts, WorkerState
from modelscaling_trainer.request import Outcome, Request
from modelscaling_trainer.worker_protocol import Abandon, Ask, Join
from tests.trainer.agent_builders import make_configuration, make_placement, make_rejection

DEADLINE = 100.0
NOW = 50.0
LATE = 100.0

STARTING = WorkerFacts()
IDLE = WorkerFacts(state=WorkerState.IDLE)
BUSY = WorkerFacts(
    state=WorkerState.BUSY,
    generation=1,
    attempt=1,
    placement=make_placement(1),
    may_hold_steps=True,
)
FORMING = replace(BUSY, may_hold_steps=False)
GONE = WorkerFacts(state=WorkerState.GONE)
COMPLETE = replace(IDLE, generation=1, attempt=1, outcome=Outcome.COMPLETE)
RELEASED = replace(COMPLETE, outcome=Outcome.RELEASED)
FAILURE = Failure(exit_code=ExitCode.DIVERGED, reason="Diverged", message="loss is nan")


def make_facts(
    *workers: WorkerFacts, index: int = 0, pods: int = 1, generation: int = 1, **changes: Any
) -> Facts:
    """An agent with these workers that has obeyed `generation`, as pod `index` of `pods`."""
    placement = make_placement(
        *[len(workers)] * pods, index=index, generation=generation, **changes
    )
    return Facts(workers=workers).obeying(placement, deadline=DEADLINE)


def busy_in(*processes: int, index: int = 0, **changes: Any) -> WorkerFacts:
    """A worker that trains in generation 1 of such pods."""
    return replace(BUSY, placement=make_placement(*processes, index=index, **changes))


def joined(decision: Decision) -> list[tuple[int, int, int | None]]:
    """Local rank, rank and store port of each command to join."""
    return [
        (local_rank, command.rank, command.store_port)
        for local_rank, command in decision.commands
        if isinstance(command, Join)
    ]


def asked(decision: Decision) -> list[tuple[int, int, Request]]:
    """Local rank, generation and request of each thing asked."""
    return [
        (local_rank, command.generation, command.request)
        for local_rank, command in decision.commands
        if isinstance(command, Ask)
    ]


def abandoned(decision: Decision) -> list[tuple[int, int, int]]:
    """Local rank, generation and attempt of each command to abandon."""
    return [
        (local_rank, command.generation, command.attempt)
        for local_rank, command in decision.commands
        if isinstance(command, Abandon)
    ]


def carry_out(facts: Facts, decision: Decision) -> Facts:
    for local_rank, command in decision.commands:
        facts = facts.told(local_rank, command)
    return facts


def stop(facts: Facts, mode: StopMode = StopMode.SUSPEND) -> Facts:
    return facts.stopping(mode, generation=facts.generation, deadline=DEADLINE)


def meets_at(port: int, *, with_leaving: bool = False, attempt: int = 1) -> StoreAddress:
    return StoreAddress(generation=1, attempt=attempt, port=port, with_leaving=with_leaving)


# Joining


def test_without_an_assignment_there_is_nothing_to_do() -> None:
    assert decide(Facts(workers=(IDLE, IDLE)), NOW) == Decision()


def test_an_assignment_waits_for_the_last_worker_to_be_warm() -> None:
    assert decide(make_facts(IDLE, STARTING), NOW).commands == ()


def test_rank_0_joins_first_and_the_others_follow_when_its_store_is_open() -> None:
    facts = make_facts(IDLE, IDLE, pods=2)
    assert joined(decide(facts, NOW)) == [(0, 0, None)]

    facts = carry_out(facts, decide(facts, NOW))
    assert decide(facts, NOW).commands == ()

    facts = facts.knowing_store(meets_at(4242))
    assert joined(decide(facts, NOW)) == [(1, 1, 4242)]


def test_other_pods_join_once_the_leader_has_told_its_port() -> None:
    facts = make_facts(IDLE, IDLE, pods=2, index=1)
    assert decide(facts, NOW).commands == ()

    decision = decide(facts.knowing_store(meets_at(4242)), NOW)

    assert joined(decision) == [(0, 2, 4242), (1, 3, 4242)]
    (_, command), _ = decision.commands
    assert isinstance(command, Join)
    assert command.store_host == "10.0.0.1"


def test_pods_that_leave_have_the_ranks_behind_those_of_the_mesh() -> None:
    facts = make_facts(IDLE, pods=3, index=2, leaving=1)

    decision = decide(facts.knowing_store(meets_at(4242, with_leaving=True)), NOW)

    ((_, command),) = decision.commands
    assert isinstance(command, Join)
    assert (command.rank, command.leavers, command.mesh.size) == (2, 1, 2)


def test_members_do_not_await_the_pods_that_leave_once_the_leader_does_not() -> None:
    facts = make_facts(IDLE, pods=3, index=1, leaving=1)

    decision = decide(facts.knowing_store(meets_at(4242, with_leaving=False)), NOW)

    ((_, command),) = decision.commands
    assert isinstance(command, Join)
    assert command.leavers == 0


def test_a_group_that_has_ended_is_not_joined_twice() -> None:
    ended = replace(IDLE, generation=1, attempt=1)

    assert decide(make_facts(ended), NOW).commands == ()


# Joining again


def test_the_leader_forms_a_broken_group_again_when_its_back_off_is_over() -> None:
    facts = replace(make_facts(replace(IDLE, generation=1, attempt=1), pods=2), attempt=1)
    facts = replace(facts.breaking(1, 1, why="rank 1 is gone", now=NOW), begin_at=NOW + 8)

    assert decide(facts, NOW) == Decision(wake_at=NOW + 8)
    ((_, command),) = decide(facts, NOW + 8).commands
    assert isinstance(command, Join)
    assert (command.attempt, command.store_port) == (2, None)


@pytest.mark.parametrize(
    "sibling",
    [
        pytest.param(replace(BUSY, is_abandoning=True), id="is still in the old attempt"),
        pytest.param(replace(STARTING, generation=1, attempt=1), id="is being replaced"),
        pytest.param(replace(GONE, generation=1, attempt=1), id="has died"),
    ],
)
def test_the_leader_waits_for_all_its_workers_before_it_forms_a_group_again(
    sibling: WorkerFacts,
) -> None:
    facts = make_facts(replace(IDLE, generation=1, attempt=1), sibling)
    facts = replace(facts, attempt=1, broken_attempt=1)

    assert decide(facts, NOW).commands == ()


def test_workers_in_a_broken_attempt_are_told_once_to_abandon_it() -> None:
    facts = replace(make_facts(BUSY, replace(IDLE, generation=1, attempt=1), BUSY), attempt=1)
    facts = facts.breaking(1, 1, why="rank 1 is gone", now=NOW)

    decision = decide(facts, NOW)

    assert abandoned(decision) == [(0, 1, 1), (2, 1, 1)]
    assert abandoned(decide(carry_out(facts, decision), NOW)) == []


def test_an_older_group_that_breaks_meanwhile_is_abandoned_too() -> None:
    facts = make_facts(BUSY, generation=2)
    asking = carry_out(facts, decide(facts, NOW))

    assert abandoned(decide(asking.breaking(1, 1, why="pod 0 is lost", now=NOW), NOW)) == [
        (0, 1, 1)
    ]


# Another group


def test_a_group_in_training_is_asked_once_to_form_anew() -> None:
    facts = make_facts(BUSY, BUSY, generation=2)
    facts = replace(facts, workers=(busy_in(2), busy_in(2)))

    decision = decide(facts, NOW)

    assert asked(decision) == [(0, 1, Request.REFORM), (1, 1, Request.REFORM)]
    assert decide(carry_out(facts, decision), NOW) == Decision(wake_at=DEADLINE)


def test_nobody_joins_before_the_last_worker_has_left_the_old_group() -> None:
    facts = make_facts(replace(IDLE, generation=1), busy_in(2), generation=2)

    assert joined(decide(facts, NOW)) == []


def test_another_configuration_makes_the_old_group_save() -> None:
    other = busy_in(1, configuration=make_configuration(training__seed=1))

    assert asked(decide(make_facts(other, generation=2), NOW)) == [(0, 1, Request.STOP)]


def test_a_larger_model_makes_the_old_group_measure_what_it_had() -> None:
    other = busy_in(1, configuration=make_configuration(model__layers=1))

    assert asked(decide(make_facts(other, generation=2), NOW)) == [(0, 1, Request.GROW)]


@pytest.mark.parametrize(
    ("before", "after", "is_planned"),
    [
        pytest.param(busy_in(1, 1), {"pods": 2}, True, id="the same pods"),
        pytest.param(busy_in(1, 1), {"pods": 3}, True, id="one more"),
        pytest.param(busy_in(1, 1), {"pods": 2, "leaving": 1}, True, id="one of them leaves"),
        pytest.param(busy_in(1, 1, 1), {"pods": 2}, False, id="one of them is not named"),
        pytest.param(
            busy_in(1, 1, 1, leaving=1), {"pods": 2}, True, id="one that was leaving has left"
        ),
    ],
)
def test_a_group_is_left_at_once_if_the_next_one_does_without_a_pod_that_does_not_leave(
    before: WorkerFacts, after: dict[str, int], *, is_planned: bool
) -> None:
    decision = decide(make_facts(before, generation=2, **after), NOW)

    assert bool(asked(decision)) is is_planned
    assert bool(abandoned(decision)) is not is_planned


def test_another_pod_under_the_number_of_a_lost_one_is_not_taken_for_it() -> None:
    placement = make_placement(1, 1)
    lost = placement.assignment.members[1].model_copy(update={"address": "10.9.9.9"})
    members = (placement.assignment.members[0], lost)
    assignment = placement.assignment.model_copy(update={"members": members})
    before = replace(BUSY, placement=replace(placement, assignment=assignment))

    assert abandoned(decide(make_facts(before, pods=2, generation=2), NOW)) == [(0, 1, 1)]


def test_a_group_that_never_reaches_a_boundary_is_abandoned() -> None:
    facts = make_facts(BUSY, generation=2)
    facts = carry_out(facts, decide(facts, NOW))

    assert abandoned(decide(facts, LATE)) == [(0, 1, 1)]


# Stopping


@pytest.mark.parametrize(
    ("mode", "exit_code"),
    [(StopMode.SUSPEND, ExitCode.INTERRUPTED), (StopMode.RELEASE, ExitCode.DONE)],
)
@pytest.mark.parametrize(
    "workers",
    [
        pytest.param((STARTING, STARTING), id="before they are warm"),
        pytest.param((IDLE, STARTING), id="half warm"),
        pytest.param((IDLE, IDLE), id="without a group"),
        pytest.param((FORMING, FORMING), id="while they meet for the first time"),
        pytest.param((GONE, IDLE), id="when one has died"),
    ],
)
def test_an_agent_without_unsaved_steps_stops_at_once(
    workers: tuple[WorkerFacts, ...], mode: StopMode, exit_code: ExitCode
) -> None:
    assert decide(stop(make_facts(*workers), mode), NOW).exit_code is exit_code


def test_workers_in_training_save_before_the_agent_stops() -> None:
    facts = stop(make_facts(BUSY, BUSY))

    decision = decide(facts, NOW)

    assert decision.exit_code is None
    assert decision.wake_at == DEADLINE
    assert asked(decision) == [(0, 1, Request.STOP), (1, 1, Request.STOP)]


def test_an_agent_that_cannot_save_in_time_stops_all_the_same() -> None:
    assert decide(stop(make_facts(BUSY)), LATE) == Decision(exit_code=ExitCode.INTERRUPTED)


def test_a_run_that_completes_while_it_is_told_to_stop_is_done() -> None:
    facts = stop(make_facts(COMPLETE, COMPLETE))

    assert decide(facts, NOW).exit_code is ExitCode.DONE


def test_a_run_is_complete_when_its_last_worker_is() -> None:
    assert decide(make_facts(COMPLETE, BUSY), NOW).exit_code is None
    assert decide(make_facts(COMPLETE, COMPLETE), NOW).exit_code is ExitCode.DONE


# Leaving


def leave(facts: Facts) -> Facts:
    return facts.leaving(leave_by=NOW + 25, end_by=NOW + 50)


def test_a_pod_that_is_told_to_end_trains_on_until_its_time_is_over() -> None:
    facts = leave(replace(make_facts(BUSY), attempt=1))

    assert decide(facts, NOW) == Decision(wake_at=NOW + 25)
    assert decide(facts, NOW + 25).stops


def test_a_pod_that_hands_over_what_it_holds_has_all_the_time_that_there_is() -> None:
    facts = leave(make_facts(busy_in(1, 1, index=1), pods=2, index=1, leaving=1, generation=2))

    assert not decide(facts, NOW + 25).stops
    assert decide(facts, NOW + 50).stops


@pytest.mark.parametrize(
    ("facts", "exit_code"),
    [
        pytest.param(make_facts(RELEASED), ExitCode.DONE, id="by the operator"),
        pytest.param(leave(make_facts(RELEASED)), ExitCode.INTERRUPTED, id="as it was told to end"),
        pytest.param(make_facts(RELEASED, BUSY), None, id="half of it only"),
        pytest.param(make_facts(RELEASED, generation=2), None, id="from an older group"),
        pytest.param(
            replace(make_facts(IDLE), is_released=True), ExitCode.DONE, id="before it could meet"
        ),
    ],
)
def test_a_pod_that_was_released_ends(facts: Facts, exit_code: ExitCode | None) -> None:
    assert decide(facts, NOW).exit_code is exit_code


# Failing


def test_a_failure_ends_the_agent_with_its_exit_code() -> None:
    facts = make_facts(GONE, IDLE).failing(FAILURE, deadline=DEADLINE)

    assert decide(facts, NOW).exit_code is ExitCode.DIVERGED


def test_after_a_failure_the_siblings_are_asked_to_stop_and_not_waited_for_too_long() -> None:
    facts = make_facts(GONE, BUSY).failing(FAILURE, deadline=DEADLINE)

    decision = decide(facts, NOW)

    assert decision.exit_code is None
    assert asked(decision) == [(1, 1, Request.STOP)]
    assert decide(facts, LATE).exit_code is ExitCode.DIVERGED


@pytest.mark.parametrize(
    ("breaks", "most_breaks", "gives_up"),
    [
        pytest.param(2, 3, False, id="not often enough"),
        pytest.param(3, 3, True, id="too often"),
        pytest.param(99, None, False, id="somebody else decides"),
    ],
)
def test_a_run_that_nobody_watches_is_given_up_when_it_fails_again_and_again(
    breaks: int, most_breaks: int | None, *, gives_up: bool
) -> None:
    facts = replace(make_facts(IDLE), breaks=breaks, failure=FAILURE)

    decision = decide(facts, NOW, most_breaks=most_breaks)

    assert decision.failure == (FAILURE if gives_up else None)


def test_a_run_that_nobody_watches_ends_where_its_growth_is_taken_back() -> None:
    facts = replace(make_facts(IDLE), growth_rejection=make_rejection())
    failure = decide(facts, NOW, most_breaks=3).failure

    assert decide(facts, NOW).failure is None
    assert failure is not None
    assert (failure.exit_code, failure.reason) == (ExitCode.CONFIGURATION, "GrowthRejected")
    assert "from 2.5000 to 3.0000 nats a token, and 0.0500 more is allowed" in failure.message

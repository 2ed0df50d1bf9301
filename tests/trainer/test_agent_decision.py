from __future__ import annotations

from dataclasses import replace

import pytest

from modelscaling.exit_code import ExitCode
from modelscaling.protocol import Failure, StopMode
from modelscaling_trainer.agent.decision import Decision, decide
from modelscaling_trainer.agent.facts import Facts, WorkerFacts, WorkerState
from modelscaling_trainer.request import Outcome, Request
from modelscaling_trainer.worker_protocol import Ask, Join
from tests.trainer.agent_builders import make_configuration, make_placement

DEADLINE = 100.0
NOW = 50.0
LATE = 100.0

CONFIGURATION = make_configuration()
STARTING = WorkerFacts()
IDLE = WorkerFacts(state=WorkerState.IDLE)
BUSY = WorkerFacts(
    state=WorkerState.BUSY, generation=1, configuration=CONFIGURATION, has_trained=True
)
FORMING = replace(BUSY, has_trained=False)
GONE = WorkerFacts(state=WorkerState.GONE)
COMPLETE = replace(IDLE, generation=1, outcome=Outcome.COMPLETE)
FAILURE = Failure(exit_code=ExitCode.DIVERGED, reason="Diverged", message="loss is nan")


def make_facts(*workers: WorkerFacts, index: int = 0, pods: int = 1, generation: int = 1) -> Facts:
    """An agent with these workers that has obeyed `generation`, as pod `index` of `pods`."""
    placement = make_placement(*[len(workers)] * pods, index=index, generation=generation)
    return Facts(workers=workers).obeying(placement, deadline=DEADLINE)


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


def stop(facts: Facts, mode: StopMode = StopMode.SUSPEND) -> Facts:
    return facts.stopping(mode, generation=facts.generation, deadline=DEADLINE)


def test_without_an_assignment_there_is_nothing_to_do() -> None:
    assert decide(Facts(workers=(IDLE, IDLE)), NOW) == Decision()


def test_an_assignment_waits_for_the_last_worker_to_be_warm() -> None:
    assert decide(make_facts(IDLE, STARTING), NOW) == Decision()


def test_rank_0_joins_first_and_the_others_follow_when_its_store_is_open() -> None:
    facts = make_facts(IDLE, IDLE, pods=2)
    assert joined(decide(facts, NOW)) == [(0, 0, None)]

    for local_rank, command in decide(facts, NOW).commands:
        facts = facts.told(local_rank, command)
    assert decide(facts, NOW) == Decision()

    facts = facts.knowing_store(generation=1, port=4242)
    assert joined(decide(facts, NOW)) == [(1, 1, 4242)]


def test_other_pods_join_once_the_leader_has_told_its_port() -> None:
    facts = make_facts(IDLE, IDLE, pods=2, index=1)
    assert decide(facts, NOW) == Decision()

    decision = decide(facts.knowing_store(generation=1, port=4242), NOW)

    assert joined(decision) == [(0, 2, 4242), (1, 3, 4242)]
    (_, command), _ = decision.commands
    assert isinstance(command, Join)
    assert command.store_host == "10.0.0.1"


def test_a_group_in_training_is_asked_once_to_form_anew() -> None:
    facts = make_facts(BUSY, BUSY, generation=2)

    decision = decide(facts, NOW)

    assert asked(decision) == [(0, 1, Request.REFORM), (1, 1, Request.REFORM)]
    for local_rank, command in decision.commands:
        facts = facts.told(local_rank, command)
    assert decide(facts, NOW) == Decision(wake_at=DEADLINE)


def test_nobody_joins_before_the_last_worker_has_left_the_old_group() -> None:
    facts = make_facts(replace(IDLE, generation=1), BUSY, generation=2)

    assert joined(decide(facts, NOW)) == []


def test_another_configuration_makes_the_old_group_save() -> None:
    other = replace(BUSY, configuration=make_configuration(training__seed=1))

    assert asked(decide(make_facts(other, generation=2), NOW)) == [(0, 1, Request.STOP)]


def test_a_group_that_never_reaches_a_boundary_fails_the_agent() -> None:
    decision = decide(make_facts(BUSY, generation=2), LATE)

    assert decision.failure is not None
    assert decision.failure.reason == "WorkerHung"
    assert decision.failure.exit_code is ExitCode.CRASHED


def test_a_group_that_has_ended_or_broken_is_not_joined_twice() -> None:
    assert decide(make_facts(replace(IDLE, generation=1)), NOW) == Decision()


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
    ],
)
def test_an_agent_without_unsaved_steps_stops_at_once(
    workers: tuple[WorkerFacts, ...], mode: StopMode, exit_code: ExitCode
) -> None:
    assert decide(stop(make_facts(*workers), mode), NOW) == Decision(exit_code=exit_code)


def test_workers_in_training_save_before_the_agent_stops() -> None:
    facts = stop(make_facts(BUSY, BUSY))

    decision = decide(facts, NOW)

    assert decision.exit_code is None
    assert decision.wake_at == DEADLINE
    assert asked(decision) == [(0, 1, Request.STOP), (1, 1, Request.STOP)]


def test_an_agent_that_cannot_save_in_time_stops_all_the_same() -> None:
    assert decide(stop(make_facts(BUSY)), LATE) == Decision(exit_code=ExitCode.INTERRUPTED)


def test_a_run_that_completes_while_it_is_told_to_stop_is_done() -> None:
    assert decide(stop(make_facts(COMPLETE, COMPLETE)), NOW) == Decision(exit_code=ExitCode.DONE)


def test_a_run_is_complete_when_its_last_worker_is() -> None:
    assert decide(make_facts(COMPLETE, BUSY), NOW) == Decision()
    assert decide(make_facts(COMPLETE, COMPLETE), NOW) == Decision(exit_code=ExitCode.DONE)


def test_a_failure_ends_the_agent_with_its_exit_code() -> None:
    facts = make_facts(GONE, IDLE).failing(FAILURE, deadline=DEADLINE)

    assert decide(facts, NOW) == Decision(exit_code=ExitCode.DIVERGED)


def test_after_a_failure_the_siblings_are_asked_to_stop_and_not_waited_for_too_long() -> None:
    facts = make_facts(GONE, BUSY).failing(FAILURE, deadline=DEADLINE)

    decision = decide(facts, NOW)

    assert decision.exit_code is None
    assert asked(decision) == [(1, 1, Request.STOP)]
    assert decide(facts, LATE) == Decision(exit_code=ExitCode.DIVERGED)

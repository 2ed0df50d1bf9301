from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from modelscaling.exit_code import ExitCode
from modelscaling.protocol import Failure, StopMode
from modelscaling_trainer.agent.facts import Facts
from modelscaling_trainer.agent.fencing import (
    Identity,
    Verdict,
    judge_assignment,
    judge_stop,
)
from modelscaling_trainer.agent.worker_facts import WorkerFacts
from tests.trainer.agent_builders import (
    RUN_UID,
    make_assignment,
    make_configuration,
    make_placement,
    make_stop,
)

if TYPE_CHECKING:
    from modelscaling.protocol import GroupAssignment, StopRequest

IDENTITY = Identity(run_uid=RUN_UID, index=0, processes=1)
FRESH = Facts(workers=(WorkerFacts(),))
OBEYED_3 = FRESH.obeying(make_placement(1, 1, generation=3), deadline=10)
STOPPING_3 = OBEYED_3.stopping(StopMode.SUSPEND, generation=3, deadline=10)
FAILED_3 = OBEYED_3.failing(
    Failure(exit_code=ExitCode.CRASHED, reason="WorkerDied", message="it died"), deadline=10
)
LEAVING_3 = OBEYED_3.leaving(leave_by=10, end_by=20)
OTHER_WORK = make_configuration(training__seed=1)


@pytest.mark.parametrize(
    ("facts", "assignment", "verdict"),
    [
        pytest.param(FRESH, make_assignment(1), Verdict.OBEYED, id="the first number"),
        pytest.param(
            OBEYED_3, make_assignment(1, generation=4), Verdict.OBEYED, id="the next number"
        ),
        pytest.param(
            OBEYED_3, make_assignment(1, generation=9), Verdict.OBEYED, id="a number far ahead"
        ),
        pytest.param(
            OBEYED_3,
            make_assignment(1, 1, generation=3),
            Verdict.REPEATED,
            id="the same number with the same content",
        ),
        pytest.param(
            OBEYED_3,
            make_assignment(1, 1, generation=3, configuration=OTHER_WORK),
            Verdict.TURNED_AWAY,
            id="the same number with another content",
        ),
        pytest.param(
            OBEYED_3, make_assignment(1, 1, generation=2), Verdict.TURNED_AWAY, id="an older one"
        ),
        pytest.param(
            STOPPING_3, make_assignment(1, generation=4), Verdict.TURNED_AWAY, id="while it stops"
        ),
        pytest.param(
            LEAVING_3,
            make_assignment(1, 1, generation=4),
            Verdict.OBEYED,
            id="while it waits to be left",
        ),
        pytest.param(
            FAILED_3, make_assignment(1, generation=4), Verdict.TURNED_AWAY, id="after a failure"
        ),
        pytest.param(
            FRESH, make_assignment(1, run_uid="another"), Verdict.OTHER_RUN, id="of another run"
        ),
        pytest.param(FRESH, make_assignment(2), Verdict.NOT_A_MEMBER, id="without a place for it"),
    ],
)
def test_only_the_newest_number_of_its_own_run_is_obeyed(
    facts: Facts, assignment: GroupAssignment, verdict: Verdict
) -> None:
    judgement = judge_assignment(facts, assignment, IDENTITY)

    assert judgement.verdict is verdict
    assert (judgement.placement is not None) == (verdict is Verdict.OBEYED)
    assert bool(judgement.message) == (verdict not in {Verdict.OBEYED, Verdict.REPEATED})


@pytest.mark.parametrize(
    ("facts", "request_", "verdict"),
    [
        pytest.param(FRESH, make_stop(generation=0), Verdict.OBEYED, id="before the first group"),
        pytest.param(OBEYED_3, make_stop(generation=3), Verdict.OBEYED, id="its number"),
        pytest.param(OBEYED_3, make_stop(generation=4), Verdict.OBEYED, id="a newer number"),
        pytest.param(OBEYED_3, make_stop(generation=2), Verdict.TURNED_AWAY, id="an older number"),
        pytest.param(STOPPING_3, make_stop(generation=3), Verdict.REPEATED, id="once more"),
        pytest.param(
            STOPPING_3,
            make_stop(StopMode.RELEASE, generation=4),
            Verdict.OBEYED,
            id="release instead of suspend",
        ),
        pytest.param(
            OBEYED_3, make_stop(run_uid="another", generation=3), Verdict.OTHER_RUN, id="other run"
        ),
    ],
)
def test_a_stop_is_obeyed_unless_its_number_is_older(
    facts: Facts, request_: StopRequest, verdict: Verdict
) -> None:
    assert judge_stop(facts, request_, IDENTITY).verdict is verdict


def test_an_assignment_after_a_stop_with_a_newer_number_is_not_taken_for_repeated() -> None:
    stopped = replace(OBEYED_3.stopping(StopMode.SUSPEND, generation=4, deadline=10))

    judgement = judge_assignment(stopped, make_assignment(1, 1, generation=4), IDENTITY)

    assert judgement.verdict is Verdict.TURNED_AWAY

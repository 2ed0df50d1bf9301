"""A pod that is in no group yet, and whose volume cannot be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from modelscaling.exit_code import ExitCode
from modelscaling.protocol import AgentState, Failure
from modelscaling_trainer.agent.decision import decide
from modelscaling_trainer.worker_protocol import CHECKPOINT_FAILED
from tests.trainer.facts_builders import NOW, replace_worker, warm

if TYPE_CHECKING:
    from modelscaling_trainer.agent.facts import Facts

UNREADABLE = Failure(
    exit_code=ExitCode.CRASHED, reason=CHECKPOINT_FAILED, message="It cannot be read."
)
STARTS = 10


@pytest.fixture
def waiting() -> Facts:
    """Its workers have ended before they were warm, again and again."""
    facts = warm()
    for _ in range(STARTS):
        facts = facts.starting(0).losing_worker(0, UNREADABLE, now=NOW)
    return facts


def test_it_waits_for_the_volume_however_long_that_takes(waiting: Facts) -> None:
    assert waiting.state() is AgentState.STARTING
    assert waiting.failure == UNREADABLE
    assert waiting.worker_failures == 0
    assert not waiting.is_failed
    assert waiting.workers[0].start_delay_s > 1

    ready = replace_worker(waiting)

    assert ready.state() is AgentState.WARM
    assert ready.failure is None


def test_a_run_that_nobody_watches_does_not_wait(waiting: Facts) -> None:
    assert decide(waiting, NOW).failure is None
    assert decide(waiting, NOW, most_breaks=STARTS).failure == UNREADABLE
    assert decide(waiting, NOW, most_breaks=STARTS + 1).failure is None

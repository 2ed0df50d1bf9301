from __future__ import annotations

from datetime import timedelta

from modelscaling_operator.agents import AgentError, Agents
from modelscaling_operator.interview import Interview
from modelscaling_operator.observation import Silence
from modelscaling_operator.run_objects import RunObjects
from tests.operator.runs import trained_world
from tests.operator.world import BEGIN, RUN


class _SilentAgents(Agents):
    """Agents that were asked half a second ago, after a wait for their turn."""

    def __init__(self) -> None:
        pass

    async def status(self, *_: object, **__: object) -> None:  # type: ignore[override]
        raise AgentError("no answer in time", waited_s=0.5)


class _Objects(RunObjects):
    def __init__(self) -> None:
        pass

    async def key(self) -> bytes:
        return b"key"


async def test_an_agent_is_silent_since_it_was_asked_and_not_since_it_was_to_be() -> None:
    interview = Interview(RUN, _SilentAgents(), _Objects(), now=lambda: BEGIN, wake=lambda: None)
    answers = await interview.ask(trained_world().observe())

    assert (
        list(answers.values())
        == [Silence(since=BEGIN - timedelta(seconds=0.5), message="no answer in time")] * 2
    )

    await interview.close()

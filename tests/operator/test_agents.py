from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from aiohttp import web

from modelscaling.protocol import (
    SIGNATURE_HEADER,
    AgentState,
    AgentStatus,
    StopMode,
    StopRequest,
    is_signed,
)
from modelscaling_operator.agents import AgentError, Agents
from modelscaling_operator.identity import RunIdentity
from tests.operator.world import RUN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEY = b"k" * 32


class FakeAgent:
    """An agent's HTTP, which checks signatures as the real one does."""

    def __init__(self) -> None:
        self.status = AgentStatus(run_uid=RUN.uid, index=0, state=AgentState.WARM)
        self.stops: list[StopRequest] = []
        self.code = 200
        self.text: str | None = None
        self.paths: list[str] = []
        self.hangs = False
        self.swallows = ""
        self.hold_s = 0.0
        self.port = 0

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.paths.append(request.path_qs)
        signature = request.headers.get(SIGNATURE_HEADER)
        if not is_signed(KEY, signature, method=request.method, path=request.path_qs, body=body):
            return web.Response(status=401)
        if self.hangs or request.path == self.swallows:
            await asyncio.Event().wait()
        await asyncio.sleep(self.hold_s)
        if request.method == "POST":
            self.stops.append(StopRequest.model_validate_json(body))
        return web.Response(status=self.code, text=self.text or self.status.model_dump_json())


@pytest_asyncio.fixture
async def agent() -> AsyncIterator[FakeAgent]:
    fake = FakeAgent()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fake.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    fake.port = runner.addresses[0][1]
    yield fake
    await runner.cleanup()


@pytest_asyncio.fixture
async def agents(agent: FakeAgent) -> AsyncIterator[Agents]:
    client = Agents(port=agent.port, timeout_s=0.2)
    yield client
    await client.close()


async def test_an_agent_is_asked_with_the_key_of_its_run(agent: FakeAgent, agents: Agents) -> None:
    assert await agents.status(RUN, KEY, "127.0.0.1") == agent.status


async def test_an_agent_is_told_to_stop_with_a_number(agent: FakeAgent, agents: Agents) -> None:
    agent.code = 202

    await agents.stop(RUN, KEY, "127.0.0.1", generation=3, mode=StopMode.RELEASE)

    assert agent.stops == [StopRequest(run_uid=RUN.uid, generation=3, mode=StopMode.RELEASE)]


async def test_an_agent_that_knows_a_newer_number_is_not_an_error(
    agent: FakeAgent, agents: Agents
) -> None:
    agent.code = 409

    await agents.stop(RUN, KEY, "127.0.0.1", generation=1, mode=StopMode.SUSPEND)


async def test_another_key_is_refused_and_the_fix_is_named(agents: Agents) -> None:
    with pytest.raises(AgentError, match="refuses the run's key; delete the pod"):
        await agents.status(RUN, b"other", "127.0.0.1")


async def test_an_agent_of_another_run_is_not_ours(agent: FakeAgent, agents: Agents) -> None:
    agent.status = agent.status.model_copy(update={"run_uid": "other"})

    with pytest.raises(AgentError, match="belongs to another run, other"):
        await agents.status(RUN, KEY, "127.0.0.1")


async def test_what_is_not_an_agent_is_told(agent: FakeAgent, agents: Agents) -> None:
    agent.text = "<html>"

    with pytest.raises(AgentError, match="is not an agent"):
        await agents.status(RUN, KEY, "127.0.0.1")


async def test_an_agent_in_trouble_is_quoted(agent: FakeAgent, agents: Agents) -> None:
    agent.code, agent.text = 500, "no room"

    with pytest.raises(AgentError, match="500: no room"):
        await agents.status(RUN, KEY, "127.0.0.1")


async def test_an_agent_that_hangs_is_given_up(agent: FakeAgent, agents: Agents) -> None:
    agent.hangs = True

    with pytest.raises(AgentError, match="no answer in time"):
        await agents.status(RUN, KEY, "127.0.0.1")


async def test_nobody_at_the_address_is_an_agent_error(agents: Agents) -> None:
    with pytest.raises(AgentError, match="GET /v1/status") as raised:
        await agents.status(RUN, KEY, "::1")

    assert raised.value.is_refusal


async def test_silence_is_no_refusal(agent: FakeAgent, agents: Agents) -> None:
    agent.hangs = True

    with pytest.raises(AgentError) as raised:
        await agents.status(RUN, KEY, "127.0.0.1", is_missed=True)

    assert not raised.value.is_refusal


async def test_news_are_asked_for_by_the_version_that_is_known(
    agent: FakeAgent, agents: Agents
) -> None:
    assert await agents.watch(RUN, KEY, "127.0.0.1", after=7) == agent.status
    assert agent.paths == ["/v1/status?after=7"]


async def test_a_held_question_may_take_longer_than_others(
    agent: FakeAgent, agents: Agents
) -> None:
    """Others have 0.2 seconds here."""
    agent.hold_s = 0.4

    assert await agents.watch(RUN, KEY, "127.0.0.1", after=7) == agent.status


@pytest.mark.parametrize("limit", ["at_once", "at_once_for_a_run"])
async def test_the_time_to_answer_begins_with_the_turn_to_be_asked(
    agent: FakeAgent, limit: str
) -> None:
    agent.swallows = "/v1/stop"
    client = Agents(port=agent.port, timeout_s=0.5, **{limit: 1})
    swallowed = asyncio.create_task(
        client.stop(RUN, KEY, "127.0.0.1", generation=1, mode=StopMode.SUSPEND)
    )
    waiting = asyncio.create_task(client.status(RUN, KEY, "127.0.0.1"))
    with pytest.raises(AgentError) as raised:
        await swallowed

    assert raised.value.waited_s >= 0.5
    assert not waiting.done()
    assert await waiting == agent.status

    await client.close()


async def test_pods_of_one_run_that_swallow_requests_keep_no_other_run_waiting(
    agent: FakeAgent,
) -> None:
    agent.swallows = "/v1/stop"
    other = RunIdentity(namespace="research", name="other", uid="other-uid")
    client = Agents(port=agent.port, timeout_s=30, at_once=2, at_once_for_a_run=1)
    swallowed = [
        asyncio.create_task(
            client.stop(other, KEY, "127.0.0.1", generation=1, mode=StopMode.SUSPEND)
        )
        for _ in range(3)
    ]
    async with asyncio.timeout(10):
        assert await client.status(RUN, KEY, "127.0.0.1") == agent.status

    for task in swallowed:
        assert not task.done()
        task.cancel()
    await asyncio.gather(*swallowed, return_exceptions=True)
    await client.close()

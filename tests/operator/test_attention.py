from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest_asyncio

from modelscaling.protocol import AgentState, AgentStatus
from modelscaling_operator.agents import AgentError, Agents
from modelscaling_operator.attention import Attention
from tests.operator.world import RUN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from modelscaling_operator.identity import RunIdentity

_DEADLINE_S = 10


def said(version: int, **changes: Any) -> AgentStatus:
    return AgentStatus(
        run_uid=RUN.uid, index=0, state=AgentState.TRAINING, version=version, **changes
    )


class HeldQuestions(Agents):
    """Agents that answer a held question when the test says so."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[tuple[str, int, asyncio.Future[AgentStatus]]] = asyncio.Queue()

    async def watch(self, run: RunIdentity, key: bytes, address: str, *, after: int) -> AgentStatus:
        assert (run, key) == (RUN, b"key")
        answer: asyncio.Future[AgentStatus] = asyncio.get_running_loop().create_future()
        self.asked.put_nowait((address, after, answer))
        return await answer

    async def next(self) -> tuple[str, int, asyncio.Future[AgentStatus]]:
        async with asyncio.timeout(_DEADLINE_S):
            return await self.asked.get()


class Bench:
    def __init__(self) -> None:
        self.agents = HeldQuestions()
        self.woken = asyncio.Event()
        self.attention = Attention(RUN, self.agents, self.woken.set, pause_s=0)

    async def is_woken(self) -> None:
        async with asyncio.timeout(_DEADLINE_S):
            await self.woken.wait()
        self.woken.clear()


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.attention.close()


async def test_news_wake_the_run_and_the_next_question_is_about_what_follows(bench: Bench) -> None:
    bench.attention.turn_to(b"key", {"pod-0": ("10.0.0.0", said(4))})
    address, after, answer = await bench.agents.next()

    assert (address, after) == ("10.0.0.0", 4)

    answer.set_result(said(6, lost=(2,)))
    await bench.is_woken()

    assert bench.attention.missed == {2}
    assert (await bench.agents.next())[1] == 6


async def test_no_news_wake_nobody(bench: Bench) -> None:
    bench.attention.turn_to(b"key", {"pod-0": ("10.0.0.0", said(4))})
    (await bench.agents.next())[2].set_result(said(4))

    assert (await bench.agents.next())[1] == 4
    assert not bench.woken.is_set()


async def test_what_a_look_has_seen_is_no_news(bench: Bench) -> None:
    bench.attention.turn_to(b"key", {"pod-0": ("10.0.0.0", said(4))})
    _, _, answer = await bench.agents.next()
    bench.attention.turn_to(b"key", {"pod-0": ("10.0.0.0", said(5))})
    answer.set_result(said(5))
    await asyncio.sleep(0)

    assert not bench.woken.is_set()


async def test_an_agent_that_falls_silent_wakes_the_run_once(bench: Bench) -> None:
    bench.attention.turn_to(b"key", {"pod-0": ("10.0.0.0", said(4))})
    (await bench.agents.next())[2].set_exception(AgentError("gone"))
    await bench.is_woken()
    (await bench.agents.next())[2].set_exception(AgentError("gone"))
    await bench.agents.next()

    assert not bench.woken.is_set()


async def test_only_the_agents_that_are_turned_to_are_watched(bench: Bench) -> None:
    bench.attention.turn_to(b"key", {"pod-0": ("10.0.0.0", said(4, lost=(1,)))})
    _, _, first = await bench.agents.next()
    bench.attention.turn_to(b"key", {"pod-1": ("10.0.0.1", said(1))})
    address, _, _ = await bench.agents.next()

    assert address == "10.0.0.1"
    assert first.cancelled()
    assert bench.attention.missed == frozenset()


async def test_an_answer_that_nobody_thought_of_ends_no_watch(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.attention.turn_to(b"key", {"pod-0": ("10.0.0.0", said(4))})
    (await bench.agents.next())[2].set_exception(RuntimeError("a bug"))
    await bench.is_woken()
    (await bench.agents.next())[2].set_result(said(5))
    await bench.is_woken()

    assert [record.message for record in caplog.records] == ["agent is not watched"]

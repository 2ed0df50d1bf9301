from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from typing import TYPE_CHECKING

from modelscaling.protocol import Member
from modelscaling_trainer.agent.probes import Probes, has_answered
from tests.trainer.agent_builders import make_assignment
from tests.trainer.steered_agent import SteeredAgent

if TYPE_CHECKING:
    import pytest


def _at(port: int) -> Member:
    return Member(index=1, address="127.0.0.1", port=port, processes=1)


async def test_an_own_want_of_files_says_nothing_about_a_pod(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def connect(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(asyncio, "open_connection", connect)

    assert await has_answered(_at(1))


async def test_a_pod_that_listens_or_refuses_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        assert await has_answered(_at(port))
    assert await has_answered(_at(port))


async def test_a_pod_from_which_nothing_comes_does_not_answer() -> None:
    with socket.socket() as server, contextlib.ExitStack() as others:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        # Linux drops whoever wants to connect while nobody accepts those that have.
        for _ in range(3):
            other = others.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(server.getsockname())

        assert not await has_answered(_at(server.getsockname()[1]))


class Cut:
    """A network that carries nothing to some pods, and a clock."""

    def __init__(self, *indexes: int) -> None:
        self.indexes = set(indexes)
        self.now = 100.0
        self.asked: list[int] = []
        self.was_asked = asyncio.Event()

    async def ask(self, pod: Member) -> bool:
        self.asked.append(pod.index)
        self.was_asked.set()
        await asyncio.sleep(0)  # others have their turn while an answer is awaited
        await asyncio.sleep(0)
        return pod.index not in self.indexes


def _agent() -> SteeredAgent:
    agent = SteeredAgent()
    agent.assign(make_assignment(1, 1, 1))
    agent.train()
    return agent


async def test_an_agent_says_who_was_unreachable_for_long_and_who_is_reached_again() -> None:
    agent, cut = _agent(), Cut(2)
    probes = Probes(agent, index=0, ask=cut.ask, now=lambda: cut.now)
    others = agent.facts.placement.pods[1:] if agent.facts.placement else ()

    await probes.look(others, ping_s=0.5)
    at_first = agent.status().unreachable
    cut.now += 8
    await probes.look(others, ping_s=0.5)
    later = agent.status().unreachable
    version = agent.version
    cut.indexes.clear()
    await probes.look(others, ping_s=0.5)

    assert (at_first, later, agent.status().unreachable) == ((), (2,), ())
    assert agent.version > version


async def test_what_was_asked_of_another_groups_pods_is_not_told_of_this_ones() -> None:
    agent, cut = _agent(), Cut(2)
    others = agent.facts.placement.pods[1:] if agent.facts.placement else ()
    probes = Probes(agent, index=0, ask=cut.ask, now=lambda: cut.now)
    await probes.look(others, ping_s=0.5)
    cut.now += 8
    await probes.look(others, ping_s=0.5)
    before = agent.status().unreachable
    cut.was_asked.clear()

    async def assign_meanwhile() -> None:
        await cut.was_asked.wait()
        agent.assign(make_assignment(1, 1, 1, generation=2))

    await asyncio.gather(assign_meanwhile(), probes.look(others, ping_s=0.5))

    assert before == (2,)
    assert agent.facts.generation == 2
    assert agent.status().unreachable == ()


async def test_the_others_are_asked_only_while_the_group_is_held_up() -> None:
    agent, cut = _agent(), Cut(2)
    asking = asyncio.create_task(Probes(agent, index=0, ask=cut.ask).run())
    await asyncio.sleep(0)
    before = list(cut.asked)
    agent.show_lost(frozenset({2}))
    async with asyncio.timeout(30):
        await cut.was_asked.wait()
    asking.cancel()

    assert before == []
    assert set(cut.asked) == {1, 2}

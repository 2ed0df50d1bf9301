from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry

from modelscaling.mesh import Mesh
from modelscaling.protocol import GroupAssignment, Member
from modelscaling_trainer.agent.heartbeat import Heartbeat
from modelscaling_trainer.agent.heartbeat_link import FAREWELL
from modelscaling_trainer.agent.peer_request import peer_request
from modelscaling_trainer.agent.server import make_application
from tests.trainer.agent_builders import RUN_UID, make_configuration
from tests.trainer.steered_agent import SteeredAgent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from modelscaling_trainer.agent.facts import Facts

    StartPod = Callable[[int], Awaitable["Pod"]]
    StartMember = Callable[["Pod", int], Awaitable["FakeMember"]]

pytestmark = pytest.mark.process  # listens on this machine

KEY = b"the run's key"
_NODE = "127.0.0.1"
_SOON_S = 30
"""Far beyond what anything here takes, on a machine however busy."""


class Pod:
    """An agent with its heartbeat, on a port of its own."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.agent = SteeredAgent(index)
        self.heartbeat = Heartbeat(self.agent, index=index, key=KEY)
        application = make_application(self.agent, self.heartbeat, CollectorRegistry(), key=KEY)
        self.server = TestServer(application)
        self._beating: asyncio.Task[None]

    @property
    def member(self) -> Member:
        return Member(index=self.index, address=_NODE, port=self.server.port or 0, processes=1)

    async def start(self) -> None:
        await self.server.start_server()
        self._beating = asyncio.create_task(self.heartbeat.run())

    async def end(self) -> None:
        """End as `service.py` does: first the heartbeat, then the server."""
        self._beating.cancel()
        await asyncio.wait([self._beating])
        await self.server.close()

    async def knows(self, holds: Callable[[Facts], bool]) -> None:
        """Return once something holds of what the agent knows."""
        assert await self.agent.wait_for(lambda: holds(self.agent.facts), _SOON_S), self.agent.facts

    async def has_lost(self, *indexes: int) -> None:
        await self.knows(lambda facts: facts.lost == frozenset(indexes))

    async def leaves_attempt(self, attempt: int) -> None:
        await self.knows(
            lambda facts: (
                facts.broken_attempt == attempt and facts.workers[0].broken_because is not None
            )
        )

    def goes_on(self) -> bool:
        """Whether its worker trains on undisturbed."""
        facts = self.agent.facts
        return not facts.lost and facts.workers[0].broken_because is None


class FakeMember:
    """A connection as a member's agent holds it, by a test that is silent after that."""

    def __init__(
        self, session: aiohttp.ClientSession, link: aiohttp.ClientWebSocketResponse
    ) -> None:
        self._session = session
        self.link = link

    async def vanish(self) -> None:
        """End without a word, as the kernel does for a process that was killed."""
        await self._session.close()

    async def give_up(self) -> None:
        """Close the connection without taking leave: it has not heard the leader for too long."""
        await self.link.close()

    async def reset(self) -> None:
        """As `vanish` where bytes were still to be read."""
        self.link.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        await self._session.close()


@pytest.fixture
async def start() -> AsyncIterator[StartPod]:
    """Starts pods; in the end nothing that they did is still going on."""
    before = asyncio.all_tasks()
    async with AsyncExitStack() as stack:

        async def start_pod(index: int) -> Pod:
            pod = Pod(index)
            await pod.start()
            stack.push_async_callback(pod.end)
            return pod

        yield start_pod
    own = asyncio.current_task()
    assert asyncio.all_tasks() - before <= {own}


@pytest.fixture
async def connect() -> AsyncIterator[StartMember]:
    """Connects to a leader in the place of a member of generation 2."""
    members = []  # held, as a connection ends with the last who knows of it
    async with AsyncExitStack() as stack:

        async def connect_member(leader: Pod, index: int) -> FakeMember:
            session = await stack.enter_async_context(aiohttp.ClientSession())
            path = f"/v1/heartbeat?generation=2&index={index}"
            url, headers = peer_request(leader.member, path, key=KEY)
            async with asyncio.timeout(_SOON_S):
                while True:
                    try:
                        link = await session.ws_connect(url, headers=headers)
                    except aiohttp.WSServerHandshakeError as error:
                        # It has been told of the group, and its heartbeat has not seen it yet.
                        assert error.status == 404  # noqa: PT017 - others are no error here
                    else:
                        members.append(FakeMember(session, link))
                        return members[-1]

        yield connect_member


def make_group(
    *members: Member, generation: int = 2, leaving: tuple[Member, ...] = ()
) -> GroupAssignment:
    return GroupAssignment(
        run_uid=RUN_UID,
        generation=generation,
        members=members,
        mesh=Mesh(dataReplicate=len(members)),
        configuration=make_configuration(),
        leaving=leaving,
    )


def train(assignment: GroupAssignment, *pods: Pod) -> None:
    """Have pods obey an assignment and train in its first attempt."""
    for pod in pods:
        pod.agent.assign(assignment)
        pod.agent.train(attempt=1)


def elsewhere(index: int) -> Member:
    """Return a pod of which there is no agent in the test."""
    return Member(index=index, address="192.0.2.1", processes=1)


@pytest.mark.parametrize("end", [FakeMember.vanish, FakeMember.reset, FakeMember.give_up])
async def test_a_member_that_goes_is_lost_at_once_and_all_leave_the_attempt(
    start: StartPod, connect: StartMember, end: Callable[[FakeMember], Awaitable[None]]
) -> None:
    leader, other = await start(0), await start(1)
    train(make_group(leader.member, other.member, elsewhere(2)), leader, other)
    killed = await connect(leader, 2)
    assert leader.goes_on()

    began = asyncio.get_running_loop().time()
    await end(killed)

    await leader.has_lost(2)
    await leader.leaves_attempt(1)
    await other.leaves_attempt(1)
    assert asyncio.get_running_loop().time() - began < 1.4  # below any time of silence
    assert not other.agent.facts.lost


async def test_a_member_that_falls_silent_is_lost_after_three_pings(
    start: StartPod, connect: StartMember
) -> None:
    leader = await start(0)
    train(make_group(leader.member, elsewhere(1)), leader)
    await connect(leader, 1)

    began = asyncio.get_running_loop().time()
    await leader.has_lost(1)

    assert 1.4 < asyncio.get_running_loop().time() - began < 4
    await leader.leaves_attempt(1)


async def test_a_member_that_speaks_is_not_lost(start: StartPod, connect: StartMember) -> None:
    leader, member = await start(0), await start(1)
    train(make_group(leader.member, member.member, elsewhere(2)), leader, member)
    silent = await connect(leader, 2)

    # As long as it takes to lose one that does not.
    await leader.has_lost(2)

    assert leader.agent.facts.lost == {2}
    assert not member.agent.facts.lost
    await silent.vanish()


async def test_a_member_that_comes_back_is_lost_no_more(
    start: StartPod, connect: StartMember
) -> None:
    leader = await start(0)
    train(make_group(leader.member, elsewhere(1)), leader)
    await (await connect(leader, 1)).vanish()
    await leader.has_lost(1)

    await connect(leader, 1)

    assert leader.agent.facts.lost == frozenset()


async def test_a_second_connection_takes_the_place_of_the_first(
    start: StartPod, connect: StartMember
) -> None:
    """A network that was cut at one end only: the old connection ends when there is a new one."""
    leader = await start(0)
    train(make_group(leader.member, elsewhere(1)), leader)
    first = await connect(leader, 1)

    await connect(leader, 1)

    assert (await first.link.receive()).type is aiohttp.WSMsgType.CLOSE
    assert leader.goes_on()


async def test_a_pod_that_never_comes_is_lost(start: StartPod) -> None:
    leader = await start(0)
    train(make_group(leader.member, elsewhere(1)), leader)
    assert leader.goes_on()

    await leader.has_lost(1)

    # The group may train all the same: it is only the agents that do not hear each other.
    assert leader.agent.facts.broken_attempt == 0


async def test_who_comes_late_is_told_which_attempt_is_broken(
    start: StartPod, connect: StartMember
) -> None:
    leader, member = await start(0), await start(1)
    assignment = make_group(leader.member, member.member)
    train(assignment, leader)
    leader.agent.attempt_is_broken(2, 1, "its worker has died")
    # A first connection: the heartbeat knows now.
    await (await connect(leader, 1)).link.close(code=FAREWELL)

    train(assignment, member)

    await member.leaves_attempt(1)


async def test_whatever_breaks_an_attempt_the_others_are_told(start: StartPod) -> None:
    leader, *members = [await start(index) for index in range(4)]
    train(make_group(leader.member, *(pod.member for pod in members)), leader, *members)

    leader.agent.attempt_is_broken(2, 1, "a member has left it and asks for attempt 2")

    for member in members:
        await member.leaves_attempt(1)
        assert not member.agent.facts.lost


async def test_a_leader_that_learns_of_the_group_last_is_not_lost(start: StartPod) -> None:
    leader, member = await start(0), await start(1)
    assignment = make_group(leader.member, member.member)
    train(assignment, member)

    train(assignment, leader)
    leader.agent.attempt_is_broken(2, 1, "to see that they are connected")

    await member.leaves_attempt(1)
    assert not member.agent.facts.lost
    assert not leader.agent.facts.lost


# The first member's agent is gone


class FakeLeader:
    """A first member's agent that accepts connections and answers nothing."""

    def __init__(self) -> None:
        self.server: TestServer
        self.connections: asyncio.Queue[asyncio.Transport] = asyncio.Queue()
        self._is_over = asyncio.Event()

    @property
    def member(self) -> Member:
        return Member(index=0, address=_NODE, port=self.server.port or 0, processes=1)

    async def accept(self, request: web.Request) -> web.StreamResponse:
        link = web.WebSocketResponse(autoping=False, timeout=0.01)
        await link.prepare(request)
        assert isinstance(request.transport, asyncio.Transport)
        await self.connections.put(request.transport)
        await self._is_over.wait()
        return link

    def end(self) -> None:
        self._is_over.set()


@asynccontextmanager
async def fake_leader() -> AsyncIterator[FakeLeader]:
    leader = FakeLeader()
    application = web.Application()
    application.add_routes([web.get("/v1/heartbeat", leader.accept)])
    leader.server = TestServer(application)
    async with leader.server:
        yield leader
        leader.end()


async def test_a_killed_leader_is_lost_at_once_until_it_is_heard_again(start: StartPod) -> None:
    member = await start(1)
    async with fake_leader() as leader:
        train(make_group(leader.member, member.member), member)
        connection = await leader.connections.get()
        assert member.goes_on()

        began = asyncio.get_running_loop().time()
        connection.abort()

        await member.has_lost(0)
        await member.leaves_attempt(1)
        assert asyncio.get_running_loop().time() - began < 1.4
        await leader.connections.get()
        await member.has_lost()


async def test_a_leader_that_falls_silent_is_lost_after_three_pings(start: StartPod) -> None:
    member = await start(1)
    async with fake_leader() as leader:
        train(make_group(leader.member, member.member), member)
        await leader.connections.get()

        began = asyncio.get_running_loop().time()
        await member.has_lost(0)

        assert 1.4 < asyncio.get_running_loop().time() - began < 4
        await member.leaves_attempt(1)


async def test_a_leader_that_refuses_to_connect_is_lost_after_a_while(start: StartPod) -> None:
    member = await start(1)
    silent = Member(index=0, address=_NODE, port=1, processes=1)

    train(make_group(silent, member.member), member)

    await member.has_lost(0)


# Taking leave


async def test_an_agent_that_ends_well_is_not_lost(start: StartPod) -> None:
    leader, member, other = [await start(index) for index in range(3)]
    train(make_group(leader.member, member.member, other.member), leader, member, other)
    await _see_all_connected(leader, member, other)

    await member.end()

    # The other's end comes after it on the same way.
    other.agent.learn(is_failed=True)
    await other.end()
    await leader.has_lost(2)


async def test_a_leader_that_ends_well_is_not_lost(start: StartPod) -> None:
    leader, member = await start(0), await start(1)
    train(make_group(leader.member, member.member), leader, member)
    await _see_all_connected(leader, member)

    await leader.end()

    assert not member.agent.facts.lost


async def test_an_agent_that_fails_is_lost_to_the_others(start: StartPod) -> None:
    leader, member = await start(0), await start(1)
    train(make_group(leader.member, member.member), leader, member)
    await _see_all_connected(leader, member)

    leader.agent.learn(is_failed=True)
    await leader.end()

    await member.has_lost(0)


async def test_a_pod_that_leaves_is_missed_only_until_it_has_handed_over(
    start: StartPod, connect: StartMember
) -> None:
    leader = await start(0)
    train(make_group(leader.member, leaving=(elsewhere(1),)), leader)
    leaver = await connect(leader, 1)
    await leaver.vanish()
    await leader.has_lost(1)

    leader.agent.learn(has_handed_over=True)

    await leader.has_lost()


# From one group to the next


@pytest.mark.parametrize("first", ["leader", "member"])
async def test_a_new_group_breaks_nothing_in_the_old_one(start: StartPod, first: str) -> None:
    leader, member = await start(0), await start(1)
    pods = (leader.member, member.member)
    train(make_group(*pods), leader, member)
    await _see_all_connected(leader, member)
    in_order = (leader, member) if first == "leader" else (member, leader)

    for pod in in_order:
        train(make_group(*pods, generation=3), pod)
    leader.agent.attempt_is_broken(3, 1, "to see that they are connected in the new one")

    await member.leaves_attempt(1)
    assert not member.agent.facts.lost
    assert not leader.agent.facts.lost


async def test_a_loss_breaks_the_old_group_while_its_workers_are_in_it_and_not_the_new_one(
    start: StartPod, connect: StartMember
) -> None:
    leader = await start(0)
    train(make_group(leader.member, elsewhere(1)), leader)
    lost = await connect(leader, 1)
    # The worker is still in the old group when the new one is known, which does without pod 1.
    leader.agent.assign(make_group(leader.member, generation=3))

    await lost.vanish()

    await leader.knows(lambda facts: facts.workers[0].broken_because is not None)
    assert leader.agent.facts.broken_attempt == 0


async def test_a_leader_with_a_newer_group_is_not_lost_to_who_has_an_old_one(
    start: StartPod,
) -> None:
    leader, member = await start(0), await start(1)
    train(make_group(leader.member, elsewhere(2), generation=3), leader)

    train(make_group(leader.member, member.member), member)
    # What its refusal prevents: to be lost for not having been heard in time.
    await leader.has_lost(2)

    assert member.goes_on()


async def _see_all_connected(leader: Pod, *members: Pod) -> None:
    """Return once all are connected: they hear of a broken attempt, and train in the next."""
    leader.agent.attempt_is_broken(2, 1, "to see that they are connected")
    for pod in (leader, *members):
        await pod.leaves_attempt(1)
        pod.agent.train(attempt=2)

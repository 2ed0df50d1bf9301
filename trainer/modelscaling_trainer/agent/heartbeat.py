"""How the agents of a group stay in touch, and what follows when one is lost.

Each holds a connection (`heartbeat_link.py`) to the first member's agent. That one lists the pods
that have fallen silent, the others list it (`presence.py`); whoever loses one has the attempt that
is going on given up in its own pod, and the first member tells all others so. An agent stays in
touch for the group before the newest as long as its workers are in that.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, NoReturn

import aiohttp
from aiohttp import WSCloseCode, web

from modelscaling_trainer.agent.heartbeat_link import (
    FAREWELL,
    accept,
    connect,
    listen,
    part,
    periods_of,
    tell_broken_attempt,
)
from modelscaling_trainer.agent.peer_request import peer_request
from modelscaling_trainer.agent.presence import (
    CONNECTED_WITHIN_S,
    Contact,
    expected_pods,
    lost_pods,
)
from modelscaling_trainer.agent.worker_facts import WorkerState

if TYPE_CHECKING:
    from modelscaling_trainer.agent.agent import Agent
    from modelscaling_trainer.agent.facts import Facts
    from modelscaling_trainer.agent.heartbeat_link import Periods
    from modelscaling_trainer.agent.placement import Placement

_RETRY_S = 0.2

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True, eq=False)
class _Company:
    """The agents of one group, as this one hears them."""

    placement: Placement
    since: float
    """When this agent began to follow the group, in the event loop's time."""
    contacts: dict[int, Contact] = field(default_factory=dict)
    """By pod index."""
    sockets: dict[int, web.WebSocketResponse] = field(default_factory=dict)
    """Where this agent is the first member's: the connections of the others, by pod index."""
    client: asyncio.Task[None] | None = None
    """Where it is not: what holds the connection to the first member's."""
    told_attempt: int = 0
    """The last broken attempt that the others were told of."""

    @property
    def generation(self) -> int:
        return self.placement.assignment.generation

    @property
    def leader_index(self) -> int:
        return self.placement.leader.index

    @property
    def periods(self) -> Periods:
        return periods_of(len(self.placement.pods))


class Heartbeat:
    """What one agent hears of the others of its groups, and what it tells them."""

    def __init__(self, agent: Agent, *, index: int, key: bytes) -> None:
        """Take the agent, its pod's index and the run's key; `run` does the work."""
        self._agent = agent
        self._index = index
        self._key = key
        self._companies: dict[int, _Company] = {}
        """By generation."""
        self._seen: Facts | None = None
        self._tasks: asyncio.TaskGroup

    async def run(self) -> None:
        """Stay in touch with the others of the agent's groups until cancelled; then take leave."""
        companies: dict[int, _Company] = {}
        try:
            async with asyncio.TaskGroup() as self._tasks:
                try:
                    await self._follow_agent()
                finally:
                    # From now on nothing that happens to a connection means anything.
                    companies, self._companies = self._companies, {}
        finally:
            async with asyncio.TaskGroup() as tasks:
                for company in companies.values():
                    self._take_leave(company, tasks)

    async def attend(
        self, request: web.Request, *, generation: int, index: int
    ) -> web.StreamResponse:
        """Hold the connection of another pod's agent. Answers 404 where this is not, or does not
        know yet that it is, the first member's; 409 where the group is over.
        """
        company = self._companies.get(generation)
        if company is None or not company.placement.is_leader:
            is_over = generation < self._agent.facts.generation
            return web.Response(
                status=HTTPStatus.CONFLICT if is_over else HTTPStatus.NOT_FOUND,
                text=f"generation {generation} does not meet here\n",
            )
        socket = await accept(request, company.periods)
        if self._companies.get(generation) is not company:
            await part(socket, self._last_word())
            return socket
        former = company.sockets.get(index)
        company.sockets[index] = socket
        contact = Contact.BROKEN
        try:
            self._note(company, index, Contact.CONNECTED)
            if former:
                await former.close()
            if company.told_attempt:
                await tell_broken_attempt(socket, company.told_attempt)
            contact = await listen(socket, company.periods)
        finally:
            # Unless it has connected again meanwhile.
            if company.sockets.get(index) is socket:
                del company.sockets[index]
                self._note(company, index, contact)
        return socket

    # The groups that it follows

    async def _follow_agent(self) -> NoReturn:
        while True:
            self._seen = self._agent.facts
            self._follow(self._seen)
            self._tell_of_broken_attempt(self._seen)
            self._show_lost()
            await self._agent.wait_for(self._is_news, self._next_look_s())

    def _is_news(self) -> bool:
        return self._agent.facts is not self._seen

    def _follow(self, facts: Facts) -> None:
        """Be in the company of the groups that the agent, or one of its workers, is in."""
        current = _current_placements(facts)
        for generation in self._companies.keys() - current.keys():
            self._take_leave(self._companies.pop(generation), self._tasks)
        for generation in current.keys() - self._companies.keys():
            company = _Company(placement=current[generation], since=_now())
            self._companies[generation] = company
            if not company.placement.is_leader:
                company.client = self._tasks.create_task(self._stay_connected(company))

    def _take_leave(self, company: _Company, tasks: asyncio.TaskGroup) -> None:
        if company.client:
            company.client.cancel()
        for socket in company.sockets.values():
            tasks.create_task(part(socket, self._last_word()))

    def _last_word(self) -> int:
        """Return the close code: to the others, an agent that fails is lost."""
        return WSCloseCode.GOING_AWAY if self._agent.facts.is_failed else FAREWELL

    def _note(self, company: _Company, index: int, contact: Contact) -> None:
        """Take in what has become of a connection."""
        is_followed = self._companies.get(company.generation) is company
        if not is_followed or contact is company.contacts.get(index):
            return
        company.contacts[index] = contact
        self._show_lost()
        if contact is Contact.BROKEN and index in self._expected(company):
            self._lose(company, index)

    def _lose(self, company: _Company, index: int) -> None:
        """Have the attempt that is going on given up, here and by the others."""
        generation = company.generation
        attempt = _attempt_of(self._agent.facts, generation)
        why = f"the agent of pod {index} has gone or fallen silent"
        _log.warning("a pod is lost", extra={"index": index, "generation": generation})
        self._agent.attempt_is_broken(generation, attempt, why)
        self._tell(company, attempt)

    # What is seen from outside

    def _expected(self, company: _Company) -> frozenset[int]:
        facts = self._agent.facts
        has_handed_over = company.generation < facts.generation or facts.has_handed_over
        return expected_pods(company.placement, has_handed_over=has_handed_over)

    def _show_lost(self) -> None:
        now = _now()
        lost = [
            lost_pods(self._expected(company), company.contacts, since=company.since, now=now)
            for company in self._companies.values()
        ]
        self._agent.show_lost(frozenset[int]().union(*lost))

    def _next_look_s(self) -> float | None:
        """Return in how many seconds a pod may be lost without anything happening."""
        now = _now()
        times = [company.since + CONNECTED_WITHIN_S for company in self._companies.values()]
        return min((time - now for time in times if time > now), default=None)

    # What the first member's agent tells

    def _tell_of_broken_attempt(self, facts: Facts) -> None:
        if company := self._companies.get(facts.generation):
            self._tell(company, facts.broken_attempt)

    def _tell(self, company: _Company, broken_attempt: int) -> None:
        """Tell the others, once, where this agent is the first member's."""
        if broken_attempt <= company.told_attempt:
            return
        company.told_attempt = broken_attempt
        for socket in company.sockets.values():
            self._tasks.create_task(tell_broken_attempt(socket, broken_attempt))

    # What the agents of the others do

    async def _stay_connected(self, company: _Company) -> None:
        """Hold a connection to the first member's agent until it takes leave."""
        async with aiohttp.ClientSession() as session:
            while company.contacts.get(company.leader_index) is not Contact.PARTED:
                try:
                    contact = await self._connect(session, company)
                except aiohttp.WSServerHandshakeError as error:
                    # It has gone on to a newer group, so it is not silent.
                    if error.status == HTTPStatus.CONFLICT:
                        self._note(company, company.leader_index, Contact.PARTED)
                except (aiohttp.ClientError, OSError, TimeoutError) as error:
                    _log.debug("the first member's agent is not reached", extra={"error": error})
                else:
                    self._note(company, company.leader_index, contact)
                await asyncio.sleep(_RETRY_S)

    async def _connect(self, session: aiohttp.ClientSession, company: _Company) -> Contact:
        path = f"/v1/heartbeat?generation={company.generation}&index={self._index}"
        return await connect(
            session,
            peer_request(company.placement.leader, path, key=self._key),
            company.periods,
            on_open=lambda: self._note(company, company.leader_index, Contact.CONNECTED),
            on_broken_attempt=lambda attempt: self._hear_of_broken_attempt(company, attempt),
            last_word=self._last_word,
        )

    def _hear_of_broken_attempt(self, company: _Company, attempt: int) -> None:
        self._agent.attempt_is_broken(
            company.generation,
            attempt,
            f"the agent of pod {company.leader_index} says that attempt {attempt} is broken",
        )


def _current_placements(facts: Facts) -> dict[int, Placement]:
    """Return the places that matter by generation: the newest, and those of workers in a group."""
    in_group = [worker.placement for worker in facts.workers if worker.state is WorkerState.BUSY]
    places = [place for place in (*in_group, facts.placement) if place]
    return {place.assignment.generation: place for place in places}


def _attempt_of(facts: Facts, generation: int) -> int:
    """Return the attempt that is going on in a group: its workers', else the newest."""
    if generation == facts.generation:
        return facts.attempt
    return max((w.attempt for w in facts.workers if w.generation == generation), default=0)


def _now() -> float:
    return asyncio.get_running_loop().time()

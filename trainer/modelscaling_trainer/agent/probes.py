"""How an agent finds out which pods of its group it cannot reach (`reach.py`): while the group does
not come on, it asks all of them by opening a connection, and closing it.

A machine that refuses the connection was reached: what has become of its agent is another matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from typing import TYPE_CHECKING, NoReturn

from modelscaling_trainer.agent.heartbeat_link import periods_of
from modelscaling_trainer.agent.reach import Reach

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from modelscaling.protocol import Member
    from modelscaling_trainer.agent.agent import Agent
    from modelscaling_trainer.agent.facts import Facts

_PAUSE_PINGS = 2
"""Between two questions, in periods of the heartbeats' pings: 1 s, longer in large groups."""
_UNREACHABLE_PINGS = 16
"""After so many without an answer a pod cannot be reached: 8 s."""
_ANSWER_S = 1.5
_ASKED_AT_ONCE = 64
_OWN_WANTS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL})
"""Errors of this machine, which say nothing about the other one."""


async def has_answered(pod: Member) -> bool:
    """Whether a pod's machine answers; it is taken to where it cannot be asked."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            _, writer = await asyncio.open_connection(pod.address, pod.port)
    except ConnectionRefusedError:
        return True
    except TimeoutError:
        return False
    except OSError as error:
        return error.errno in _OWN_WANTS
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


class Probes:
    """Asks the others of one agent's group."""

    def __init__(
        self,
        agent: Agent,
        *,
        index: int,
        ask: Callable[[Member], Awaitable[bool]] = has_answered,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the agent, its pod's index, how a pod is asked, and a clock in seconds; `run` does
        the work.
        """
        self._agent = agent
        self._index = index
        self._ask = ask
        self._now = now
        self._reach = Reach()
        self._places = asyncio.Semaphore(_ASKED_AT_ONCE)

    async def run(self) -> NoReturn:
        """Ask again and again, while the group does not come on, until cancelled."""
        while True:
            others = _others(self._agent.facts, self._index)
            ping_s = periods_of(len(others) + 1).ping
            await self.look(others if self._agent.is_held_up else (), ping_s=ping_s)
            await asyncio.sleep(_PAUSE_PINGS * ping_s)

    async def look(self, pods: tuple[Member, ...], *, ping_s: float) -> None:
        """Ask these pods once, and have the agent say which of them cannot be reached."""
        asked_at, generation = self._now(), self._agent.facts.generation
        answers = await asyncio.gather(*(self._ask_in_turn(pod) for pod in pods))
        if self._agent.facts.generation != generation:
            return  # the pods of another group may have the same indexes
        self._reach = self._reach.after(dict(zip(pods, answers, strict=True)), asked_at=asked_at)
        unreachable = self._reach.unreachable(now=self._now(), limit_s=_UNREACHABLE_PINGS * ping_s)
        self._agent.show_unreachable(unreachable)

    async def _ask_in_turn(self, pod: Member) -> bool:
        async with self._places:
            return await self._ask(pod)


def _others(facts: Facts, index: int) -> tuple[Member, ...]:
    if facts.placement is None:
        return ()
    placement = facts.placement
    pods = placement.assignment.members if facts.has_handed_over else placement.pods
    return tuple(pod for pod in pods if pod.index != index)

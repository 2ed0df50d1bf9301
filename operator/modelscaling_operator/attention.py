"""Held questions to a few of a run's agents, so that the run is looked at as soon as one has news.

What they answer decides nothing: it only wakes the loop, which then asks every agent.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from modelscaling_operator.agents import AgentError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from modelscaling.protocol import AgentStatus
    from modelscaling_operator.agents import Agents
    from modelscaling_operator.identity import RunIdentity

_logger = logging.getLogger(__name__)

WATCHED = 2
"""Agents of a run that are watched: the first member's, and another's that tells of its loss."""
PAUSE_S = 1.0
"""Seconds between two questions to an agent that does not answer."""


class Attention:
    """Watches the agents of one run; `wake` is called when one has news or falls silent."""

    def __init__(
        self,
        run: RunIdentity,
        agents: Agents,
        wake: Callable[[], None],
        *,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._run = run
        self._agents = agents
        self._wake = wake
        self._pause_s = pause_s
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._latest: dict[str, AgentStatus] = {}

    def turn_to(self, key: bytes, agents: Mapping[str, tuple[str, AgentStatus]]) -> None:
        """Watch these agents and no others; each by its pod's UID, with its address and what it
        said last.
        """
        for uid in [uid for uid in self._watches if uid not in agents]:
            self._watches.pop(uid).cancel()
            self._latest.pop(uid)
        for uid, (address, status) in agents.items():
            self._latest[uid] = status
            if uid not in self._watches:
                self._watches[uid] = asyncio.create_task(self._watch(uid, key, address))

    @property
    def missed(self) -> frozenset[int]:
        """Indexes of pods that a watched agent has lost."""
        return frozenset(index for status in self._latest.values() for index in status.lost)

    async def close(self) -> None:
        """Let go of all."""
        tasks = list(self._watches.values())
        self.turn_to(b"", {})
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, uid: str, key: bytes, address: str) -> None:
        is_silent = False
        clock = asyncio.get_running_loop().time
        while True:
            known, asked_at = self._latest[uid].version, clock()
            try:
                status = await self._agents.watch(self._run, key, address, after=known)
            except Exception as error:
                # Whatever it is: a watch that ended would never be begun again.
                if not is_silent:
                    self._wake()
                    if not isinstance(error, AgentError):
                        _logger.exception("agent is not watched", extra={"run": str(self._run)})
                is_silent = True
                await asyncio.sleep(self._pause_s)
                continue
            is_silent = False
            if status.version > self._latest[uid].version:
                self._latest[uid] = status
                self._wake()
            elif clock() < asked_at + self._pause_s:
                # An agent of an older release knows nothing of held questions.
                await asyncio.sleep(self._pause_s)

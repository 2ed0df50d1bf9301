"""What a run's agents say: all are asked at once, and a few are watched in between."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

from modelscaling.protocol import AgentStatus
from modelscaling_operator.agents import AgentError
from modelscaling_operator.attention import WATCHED, Attention
from modelscaling_operator.observation import Silence
from modelscaling_operator.run_objects import NameTakenError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from modelscaling_operator.agents import Agents
    from modelscaling_operator.identity import RunIdentity
    from modelscaling_operator.observation import Observation, Pod
    from modelscaling_operator.run_objects import RunObjects


class Interview:
    """Asks the agents of one run, and remembers since when one is silent."""

    def __init__(
        self,
        run: RunIdentity,
        agents: Agents,
        objects: RunObjects,
        *,
        now: Callable[[], datetime],
        wake: Callable[[], None],
    ) -> None:
        self._run = run
        self._agents = agents
        self._objects = objects
        self._now = now
        self._attention = Attention(run, agents, wake)
        self._silences: dict[str, datetime] = {}

    async def close(self) -> None:
        """Watch nobody any more."""
        await self._attention.close()

    async def ask(self, seen: Observation) -> dict[str, AgentStatus | Silence]:
        """Return what the agents of the run's own pods say, by their UIDs."""
        pods = [pod for pod in seen.own if pod.has_agent]
        key = await self._key() if pods else b""
        missed = self._attention.missed
        answers = await asyncio.gather(
            *(self._ask_one(pod, key, is_missed=pod.index in missed) for pod in pods)
        )
        by_uid = {pod.uid: answer for pod, answer in zip(pods, answers, strict=True)}
        self._silences = {
            uid: answer.since for uid, answer in by_uid.items() if isinstance(answer, Silence)
        }
        self._attention.turn_to(key, _to_watch(seen, by_uid))
        return by_uid

    async def _key(self) -> bytes:
        try:
            return await self._objects.key()
        except NameTakenError:
            return b""

    async def _ask_one(self, pod: Pod, key: bytes, *, is_missed: bool) -> AgentStatus | Silence:
        error = AgentError(f"the Secret {self._run.secret_name} with the run's key is missing")
        if key:
            try:
                return await self._agents.status(
                    self._run, key, pod.address or "", is_missed=is_missed
                )
            except AgentError as raised:
                error = raised
        # It may have waited for its turn before, and is not silent since then.
        asked = self._now() - timedelta(seconds=error.waited_s)
        since = self._silences.get(pod.uid) or asked
        return Silence(since=since, message=str(error), is_refusal=error.is_refusal)


def _to_watch(
    seen: Observation, answers: Mapping[str, AgentStatus | Silence]
) -> dict[str, tuple[str, AgentStatus]]:
    """Return the first members that answer: the leader and one that tells of the leader's loss."""
    watched: dict[str, tuple[str, AgentStatus]] = {}
    for pod in seen.members:
        answer = answers.get(pod.uid) if pod else None
        if pod and isinstance(answer, AgentStatus) and len(watched) < WATCHED:
            watched[pod.uid] = (pod.address or "", answer)
    return watched

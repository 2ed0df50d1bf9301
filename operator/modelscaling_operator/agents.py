"""The operator's side of the protocol with agents: signed requests with timeouts."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import aiohttp
from pydantic import ValidationError

from modelscaling.protocol import AGENT_PORT, SIGNATURE_HEADER, AgentStatus, StopRequest, sign

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from modelscaling.protocol import GroupAssignment, StopMode
    from modelscaling_operator.identity import RunIdentity

TIMEOUT_S = 1.0
"""Seconds in which an agent answers; it never waits for its workers before it does."""
MISSED_TIMEOUT_S = 0.3
"""The same for an agent that its peers have lost: what they say is only to be confirmed."""
WATCH_TIMEOUT_S = 30.0
"""Seconds in which an agent answers that may wait until it has news, which it does for less."""
AT_ONCE = 256
"""Requests under way at a time, of all runs."""
AT_ONCE_FOR_A_RUN = 64
"""The same for one run: pods of it that swallow what they are sent do not keep others waiting."""


class AgentError(Exception):
    """An agent that does not answer as one; the message says what it did."""

    def __init__(self, message: str, *, is_refusal: bool = False, waited_s: float = 0) -> None:
        super().__init__(message)
        self.is_refusal = is_refusal
        """Whether the machine answered that nobody listens."""
        self.waited_s = waited_s
        """For how long the answer was waited for."""


class Agents:
    """Requests to the agents of runs. `port` is the agents' own; tests take others, and fewer
    requests at once.
    """

    def __init__(
        self,
        *,
        port: int = AGENT_PORT,
        timeout_s: float = TIMEOUT_S,
        at_once: int = AT_ONCE,
        at_once_for_a_run: int = AT_ONCE_FOR_A_RUN,
    ) -> None:
        self._port = port
        self._timeout_s = timeout_s
        # No limit of its own: a wait for a connection would count as the agent's silence.
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self._turns = asyncio.Semaphore(at_once)
        self._at_once_for_a_run = at_once_for_a_run
        self._turns_of_runs: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def status(
        self, run: RunIdentity, key: bytes, address: str, *, is_missed: bool = False
    ) -> AgentStatus:
        """Return what an agent says of itself; one that its peers miss has less time for it.

        Raises:
            AgentError: it does not answer, or belongs to another run.
        """
        timeout_s = min(self._timeout_s, MISSED_TIMEOUT_S) if is_missed else self._timeout_s
        async with self._turn(run.uid):
            data = await self._request("GET", address, "/v1/status", key, timeout_s=timeout_s)
        return _own_status(run, address, data)

    async def watch(self, run: RunIdentity, key: bytes, address: str, *, after: int) -> AgentStatus:
        """Return what an agent says of itself once there is news after a version, or after a while
        without any.

        Raises:
            AgentError: it does not answer, or belongs to another run.
        """
        path = f"/v1/status?after={after}"
        # Thousands of runs ask one or two each, which must not keep others from their turns.
        data = await self._request("GET", address, path, key, timeout_s=WATCH_TIMEOUT_S)
        return _own_status(run, address, data)

    async def assign(self, key: bytes, address: str, assignment: GroupAssignment) -> None:
        """Tell an agent who trains together. One that knows a newer number turns it away, and
        its status says so.
        """
        body = assignment.model_dump_json().encode()
        async with self._turn(assignment.run_uid):
            await self._request("POST", address, "/v1/group", key, body)

    async def stop(
        self, run: RunIdentity, key: bytes, address: str, *, generation: int, mode: StopMode
    ) -> None:
        """Tell an agent to save and end."""
        request = StopRequest(run_uid=run.uid, generation=generation, mode=mode)
        body = request.model_dump_json().encode()
        async with self._turn(run.uid):
            await self._request("POST", address, "/v1/stop", key, body)

    @asynccontextmanager
    async def _turn(self, run_uid: str) -> AsyncIterator[None]:
        """Wait for a turn to ask, first among those of the run: its time to answer begins then."""
        turns = asyncio.Semaphore(self._at_once_for_a_run)
        of_run = self._turns_of_runs.setdefault(run_uid, turns)
        async with of_run, self._turns:
            yield

    async def _request(
        self,
        method: str,
        address: str,
        path: str,
        key: bytes,
        body: bytes = b"",
        *,
        timeout_s: float | None = None,
    ) -> bytes:
        host = f"[{address}]" if ":" in address else address
        headers = {SIGNATURE_HEADER: sign(key, method=method, path=path, body=body)}
        if body:
            headers["Content-Type"] = "application/json"
        url = f"http://{host}:{self._port}{path}"
        timeout = aiohttp.ClientTimeout(total=timeout_s or self._timeout_s)
        clock = asyncio.get_running_loop().time
        asked_at = clock()
        try:
            async with self._session.request(
                method, url, data=body, headers=headers, timeout=timeout
            ) as response:
                answer = await response.read()
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise AgentError(
                f"{method} {path}: {_words(error)}",
                is_refusal=_is_refusal(error),
                waited_s=clock() - asked_at,
            ) from error
        if status in {401, 403}:
            raise AgentError(
                f"{method} {path}: it refuses the run's key; delete the pod if the run's Secret "
                f"was changed"
            )
        if status not in {200, 202, 409}:
            raise AgentError(f"{method} {path}: {status}: {answer[:200].decode(errors='replace')}")
        return answer


def _own_status(run: RunIdentity, address: str, data: bytes) -> AgentStatus:
    try:
        status = AgentStatus.model_validate_json(data)
    except ValidationError as error:
        raise AgentError(f"what answers at {address} is not an agent: {error}") from error
    if status.run_uid != run.uid:
        raise AgentError(f"the agent at {address} belongs to another run, {status.run_uid}")
    return status


def _is_refusal(error: BaseException) -> bool:
    return isinstance(error, aiohttp.ClientConnectorError) and isinstance(
        error.os_error, ConnectionRefusedError
    )


def _words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__

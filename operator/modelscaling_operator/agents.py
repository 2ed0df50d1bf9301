"""The operator's side of the protocol with agents: signed requests with timeouts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
from pydantic import ValidationError

from modelscaling.protocol import AGENT_PORT, SIGNATURE_HEADER, AgentStatus, StopRequest, sign

if TYPE_CHECKING:
    from modelscaling.protocol import GroupAssignment, StopMode
    from modelscaling_operator.identity import RunIdentity

TIMEOUT_S = 2.0
"""Seconds in which an agent answers; it never waits for its workers before it does."""


class AgentError(Exception):
    """An agent that does not answer as one; the message says what it did."""


class Agents:
    """Requests to the agents of runs. `port` is the agents' own; tests take others."""

    def __init__(self, *, port: int = AGENT_PORT, timeout_s: float = TIMEOUT_S) -> None:
        self._port = port
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            connector=aiohttp.TCPConnector(limit=256),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def status(self, run: RunIdentity, key: bytes, address: str) -> AgentStatus:
        """Return what an agent says of itself.

        Raises:
            AgentError: it does not answer, or belongs to another run.
        """
        data = await self._request("GET", address, "/v1/status", key)
        return _own_status(run, address, data)

    async def assign(self, key: bytes, address: str, assignment: GroupAssignment) -> None:
        """Tell an agent who trains together. One that knows a newer number turns it away, and
        its status says so.
        """
        await self._request(
            "POST", address, "/v1/group", key, assignment.model_dump_json().encode()
        )

    async def stop(
        self, run: RunIdentity, key: bytes, address: str, *, generation: int, mode: StopMode
    ) -> None:
        """Tell an agent to save and end."""
        request = StopRequest(run_uid=run.uid, generation=generation, mode=mode)
        await self._request("POST", address, "/v1/stop", key, request.model_dump_json().encode())

    async def _request(
        self, method: str, address: str, path: str, key: bytes, body: bytes = b""
    ) -> bytes:
        host = f"[{address}]" if ":" in address else address
        headers = {SIGNATURE_HEADER: sign(key, method=method, path=path, body=body)}
        if body:
            headers["Content-Type"] = "application/json"
        url = f"http://{host}:{self._port}{path}"
        try:
            async with self._session.request(method, url, data=body, headers=headers) as response:
                answer = await response.read()
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise AgentError(f"{method} {path}: {_words(error)}") from error
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


def _words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__

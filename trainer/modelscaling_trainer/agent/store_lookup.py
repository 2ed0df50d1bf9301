"""Ask the leader's agent where an attempt to form the group meets, until it knows."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING

import aiohttp

from modelscaling.protocol import StoreAddress
from modelscaling_trainer.agent.peer_request import peer_request

if TYPE_CHECKING:
    from modelscaling.protocol import Member

_REQUEST_TIMEOUT_S = 10.0
"""Longer than the leader's agent holds an answer back."""
_RETRY_S = 0.2


class StoreUnknownError(Exception):
    """The leader will not say, or did not in time."""


async def look_up_store(
    leader: Member, generation: int, attempt: int, *, key: bytes, timeout_s: float
) -> StoreAddress:
    """Return where this attempt, or a later one, to form the group of this generation meets.

    To ask for an attempt tells the leader that those before it have failed.

    Raises:
        StoreUnknownError: the leader has a newer group, refuses us, or was silent for `timeout_s`.
    """
    path = f"/v1/store?generation={generation}&attempt={attempt}"
    url, headers = peer_request(leader, path, key=key)
    last = "no answer"
    timeout = aiohttp.ClientTimeout(total=_REQUEST_TIMEOUT_S)
    try:
        async with asyncio.timeout(timeout_s), aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                try:
                    async with session.get(url, headers=headers) as response:
                        body = await response.text()
                        if response.status == HTTPStatus.OK:
                            return StoreAddress.model_validate_json(body)
                        last = f"{response.status} {body}"
                        if response.status != HTTPStatus.NOT_FOUND:
                            break
                except (aiohttp.ClientError, TimeoutError) as error:
                    last = f"{type(error).__name__}: {error}"
                await asyncio.sleep(_RETRY_S)
    except TimeoutError:
        last = f"{last} for {timeout_s} s"
    raise StoreUnknownError(
        f"the agent of member {leader.index} at {leader.address}:{leader.port} did not say where "
        f"attempt {attempt} of generation {generation} meets: {last}"
    )

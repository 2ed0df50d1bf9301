"""One connection between two agents of a group: what both ends do to notice that the other is gone.

A killed pod resets its connections, which is seen within milliseconds. A node that vanishes resets
nothing: so a member pings every half second, the first member answers, and each takes the other
for lost after three pings in which nothing came. (aiohttp's own `heartbeat=` would leave a third
of that time for an answer. An agent on a busy machine may need longer, and to form a group again
for nothing costs more than a rare loss could gain by being seen sooner.)
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, NamedTuple

import aiohttp
from aiohttp import WSMsgType, web

from modelscaling.protocol import BrokenAttempt
from modelscaling_trainer.agent.presence import Contact

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelscaling_trainer.agent.peer_request import PeerRequest

FAREWELL = 4000
"""Close code of an agent that is done with its group, from the range for private use: aiohttp gives
1000 also for connections that were closed without a word."""

_PING_S = 0.5
_SILENCE_S = 1.5
_PODS_AT_FULL_RATE = 256
"""In larger groups everything takes as much longer, so that their first member's agent spends no
more on it: about 4 % of a core."""
_CONNECT_TIMEOUT_S = 1.5
_CLOSE_TIMEOUT_S = 0.5


class Periods(NamedTuple):
    """How often a group's agents speak, in seconds; the same at both ends."""

    ping: float
    """Between two pings of a member."""
    silence: float
    """After so long without a word the other end is lost."""


def periods_of(pods: int) -> Periods:
    """Return the periods of a group of so many pods."""
    factor = max(1.0, pods / _PODS_AT_FULL_RATE)
    return Periods(ping=_PING_S * factor, silence=_SILENCE_S * factor)


async def accept(request: web.Request, periods: Periods) -> web.WebSocketResponse:
    """Open the first member's end of a connection."""
    socket = web.WebSocketResponse(
        receive_timeout=periods.silence, timeout=_CLOSE_TIMEOUT_S, compress=False, autoping=False
    )
    await socket.prepare(request)
    return socket


async def listen(
    socket: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
    periods: Periods,
    on_broken_attempt: Callable[[int], None] = lambda _: None,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Contact:
    """Take in what comes until the connection ends; return how it did. A silence counts only where
    this process itself was there: what came while it stood still is yet to be read.
    """
    while not socket.closed:
        silent_at = clock() + periods.silence
        try:
            message = await socket.receive()
            if message.type is WSMsgType.TEXT:
                on_broken_attempt(BrokenAttempt.model_validate_json(message.data).broken_attempt)
            elif message.type is WSMsgType.PING:
                await socket.pong(message.data)
        except TimeoutError:
            if clock() < silent_at + periods.ping:
                return Contact.BROKEN
        except (aiohttp.ClientError, ConnectionError):
            return Contact.BROKEN
    return Contact.PARTED if socket.close_code == FAREWELL else Contact.BROKEN


async def connect(
    session: aiohttp.ClientSession,
    request: PeerRequest,
    periods: Periods,
    *,
    on_open: Callable[[], None],
    on_broken_attempt: Callable[[int], None],
    last_word: Callable[[], int],
) -> Contact:
    """Hold a member's end of a connection as long as the first member's agent lives; return how
    it ended. When cancelled, take leave with the close code `last_word`.

    Raises:
        aiohttp.ClientError, OSError, TimeoutError: it did not come about.
    """
    async with asyncio.timeout(_CONNECT_TIMEOUT_S):
        socket = await session.ws_connect(
            request.url,
            headers=request.headers,
            timeout=aiohttp.ClientWSTimeout(ws_receive=periods.silence, ws_close=_CLOSE_TIMEOUT_S),
            autoping=False,
        )
    try:
        on_open()
        async with asyncio.TaskGroup() as tasks:
            pings = tasks.create_task(_ping(socket, periods.ping))
            contact = await listen(socket, periods, on_broken_attempt)
            pings.cancel()
    except asyncio.CancelledError:
        await part(socket, last_word())
        raise
    finally:
        await socket.close()
    return contact


async def tell_broken_attempt(socket: web.WebSocketResponse, attempt: int) -> None:
    """Tell a member that an attempt to form the group has failed."""
    with contextlib.suppress(ConnectionError):
        await socket.send_str(BrokenAttempt(broken_attempt=attempt).model_dump_json())


async def part(
    socket: web.WebSocketResponse | aiohttp.ClientWebSocketResponse, last_word: int
) -> None:
    """Close a connection."""
    with contextlib.suppress(ConnectionError):
        await socket.close(code=last_word)


async def _ping(socket: aiohttp.ClientWebSocketResponse, period_s: float) -> None:
    with contextlib.suppress(ConnectionError):
        while True:
            await socket.ping()
            await asyncio.sleep(period_s)

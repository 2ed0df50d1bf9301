from __future__ import annotations

from typing import TYPE_CHECKING, cast

from aiohttp import WSMessage, WSMsgType, web

from modelscaling_trainer.agent.heartbeat_link import FAREWELL, listen, periods_of
from modelscaling_trainer.agent.presence import Contact

if TYPE_CHECKING:
    from collections.abc import Iterator

PERIODS = periods_of(2)


class Link:
    """A connection on which some waits end without a word, each after so many seconds."""

    def __init__(self, *waits_s: float) -> None:
        self.now = 0.0
        self.closed = False
        self.close_code: int | None = None
        self.ponged: list[bytes] = []
        self._waits_s: Iterator[float] = iter(waits_s)

    async def receive(self) -> WSMessage:
        for wait_s in self._waits_s:
            self.now += wait_s
            if wait_s:
                raise TimeoutError
            return WSMessage(WSMsgType.PING, b"there?", None)
        self.closed, self.close_code = True, FAREWELL
        return WSMessage(WSMsgType.CLOSE, FAREWELL, None)

    async def pong(self, data: bytes) -> None:
        self.ponged.append(data)


async def contact_at_the_end(link: Link) -> Contact:
    return await listen(cast("web.WebSocketResponse", link), PERIODS, clock=lambda: link.now)


async def test_who_says_nothing_for_three_pings_is_lost() -> None:
    assert await contact_at_the_end(Link(0, PERIODS.silence)) is Contact.BROKEN


async def test_who_stood_still_itself_hears_what_came_meanwhile() -> None:
    link = Link(60.0, 0)

    assert await contact_at_the_end(link) is Contact.PARTED
    assert link.ponged == [b"there?"]


async def test_who_stood_still_itself_hears_no_one_that_is_gone() -> None:
    assert await contact_at_the_end(Link(60.0, PERIODS.silence)) is Contact.BROKEN

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from modelscaling.protocol import SIGNATURE_HEADER, Member, StoreAddress, is_signed
from modelscaling_trainer.agent.store_lookup import StoreUnknownError, look_up_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.process  # listens on this machine

KEY = b"the run's key"
ADDRESS = StoreAddress(generation=3, attempt=2, port=4242, with_leaving=False)


class Leader:
    """A leader's agent that answers as its script says."""

    def __init__(self) -> None:
        self.script: list[int] = []
        self.requests: list[str] = []
        self.member = Member(index=0, address="127.0.0.1", processes=1)

    async def answer(self, request: web.Request) -> web.Response:
        assert is_signed(
            KEY,
            request.headers.get(SIGNATURE_HEADER),
            method="GET",
            path=request.raw_path,
            body=b"",
        )
        self.requests.append(request.raw_path)
        status = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        body = ADDRESS.model_dump_json()
        return web.Response(status=status, text=body if status == 200 else "not known here")


@pytest.fixture
async def leader() -> AsyncIterator[Leader]:
    leader = Leader()
    application = web.Application()
    application.add_routes([web.get("/v1/store", leader.answer)])
    async with TestServer(application) as server:
        leader.member = leader.member.model_copy(update={"port": server.port})
        yield leader


async def test_the_leader_is_asked_until_it_knows(leader: Leader) -> None:
    leader.script = [404, 404, 200]

    store = await look_up_store(leader.member, 3, 2, key=KEY, timeout_s=30)

    assert store == ADDRESS
    assert leader.requests == ["/v1/store?generation=3&attempt=2"] * 3


@pytest.mark.parametrize("status", [401, 409])
async def test_a_leader_that_refuses_is_not_asked_again(leader: Leader, status: int) -> None:
    leader.script = [status]

    with pytest.raises(
        StoreUnknownError, match=f"attempt 2 of generation 3 meets: {status} not known here"
    ):
        await look_up_store(leader.member, 3, 2, key=KEY, timeout_s=30)

    assert len(leader.requests) == 1


async def test_a_leader_that_never_knows_is_given_up(leader: Leader) -> None:
    leader.script = [404]

    with pytest.raises(StoreUnknownError, match=r"404 not known here for 1\.0 s"):
        await look_up_store(leader.member, 3, 2, key=KEY, timeout_s=1.0)


async def test_a_leader_that_does_not_listen_is_given_up(leader: Leader) -> None:
    silent = leader.member.model_copy(update={"port": 1})

    with pytest.raises(StoreUnknownError, match=r"member 0 at 127\.0\.0\.1:1 did not say"):
        await look_up_store(silent, 3, 2, key=KEY, timeout_s=0.05)

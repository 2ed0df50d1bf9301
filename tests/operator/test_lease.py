from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from aiohttp import web

from modelscaling_operator.lease import Lease
from modelscaling_operator.settings import parse_settings
from tests.operator.fake_api import FakeApi, status_answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from modelscaling_operator.kube import Kube

_PATH = "/apis/coordination.k8s.io/v1/namespaces/system/leases/modelscaling"


@pytest.fixture
def lost() -> asyncio.Event:
    return asyncio.Event()


@pytest_asyncio.fixture
async def make_lease(kube: Kube, lost: asyncio.Event) -> AsyncIterator[Callable[[str], Lease]]:
    made: list[Lease] = []

    def make(identity: str) -> Lease:
        settings = parse_settings(
            ["--lease-namespace=system", "--lease-duration-s=1", f"--identity={identity}"], {}
        )
        made.append(Lease(kube, settings, on_loss=lost.set))
        return made[-1]

    yield make
    for lease in made:
        await lease.release()


def holder(api: FakeApi) -> str:
    return str(api.objects[_PATH]["spec"]["holderIdentity"])


async def test_the_first_takes_the_lease_at_once(
    api: FakeApi, make_lease: Callable[[str], Lease]
) -> None:
    lease = make_lease("a")

    async with asyncio.timeout(0.5):
        await lease.acquire()

    assert lease.held
    assert holder(api) == "a"


async def test_the_next_waits_and_takes_over_as_soon_as_it_is_given_back(
    api: FakeApi, make_lease: Callable[[str], Lease]
) -> None:
    first, second = make_lease("a"), make_lease("b")
    await first.acquire()
    waiting = asyncio.create_task(second.acquire())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.5):
            await asyncio.shield(waiting)

    await first.release()
    async with asyncio.timeout(0.5):
        await waiting

    assert (first.held, second.held) == (False, True)
    assert holder(api) == "b"


async def test_a_silent_holder_is_replaced_after_the_duration(
    api: FakeApi, make_lease: Callable[[str], Lease]
) -> None:
    api.objects[_PATH] = {
        "metadata": {"namespace": "system", "name": "modelscaling", "resourceVersion": "7"},
        "spec": {"holderIdentity": "dead", "leaseDurationSeconds": 1},
    }
    lease = make_lease("a")
    begin = asyncio.get_running_loop().time()

    async with asyncio.timeout(3):
        await lease.acquire()

    assert asyncio.get_running_loop().time() - begin > 1
    assert holder(api) == "a"


async def test_a_lease_that_somebody_took_is_lost(
    api: FakeApi, make_lease: Callable[[str], Lease], lost: asyncio.Event
) -> None:
    lease = make_lease("a")
    await lease.acquire()
    stolen = api.objects[_PATH]
    api.objects[_PATH] = {
        "metadata": {**stolen["metadata"], "resourceVersion": "99"},
        "spec": {**stolen["spec"], "holderIdentity": "b"},
    }

    async with asyncio.timeout(2):
        await lost.wait()

    assert not lease.held


async def test_a_lease_that_cannot_be_renewed_is_lost_before_it_runs_out(
    api: FakeApi, make_lease: Callable[[str], Lease], lost: asyncio.Event
) -> None:
    lease = make_lease("a")
    await lease.acquire()
    api.hangs = True

    async with asyncio.timeout(1.2):
        await lost.wait()

    assert not lease.held
    api.hangs = False


async def test_a_lease_outlasts_a_server_that_refuses_for_a_while(
    api: FakeApi, make_lease: Callable[[str], Lease], lost: asyncio.Event
) -> None:
    lease = make_lease("a")
    await lease.acquire()
    api.answers = [status_answer(503, "busy") for _ in range(8)]

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await lost.wait()

    assert lease.held
    assert not api.answers


async def test_a_server_that_does_not_answer_does_not_hold_up_the_end(
    api: FakeApi, make_lease: Callable[[str], Lease]
) -> None:
    lease = make_lease("a")
    await lease.acquire()
    api.hangs = True

    async with asyncio.timeout(1):
        await lease.release()

    assert not lease.held
    assert api.bodies[-1]["spec"]["holderIdentity"] == ""
    api.hangs = False


async def test_the_api_server_may_be_away_while_the_lease_is_awaited(
    api: FakeApi, make_lease: Callable[[str], Lease]
) -> None:
    api.answers = [status_answer(503, "starting"), status_answer(500, "starting")]
    lease = make_lease("a")

    async with asyncio.timeout(2):
        await lease.acquire()

    assert lease.held


async def test_an_answer_that_is_no_lease_ends_the_operator_and_not_just_the_renewals(
    api: FakeApi, make_lease: Callable[[str], Lease], lost: asyncio.Event
) -> None:
    lease = make_lease("a")
    await lease.acquire()
    api.answers = [web.json_response({"metadata": {}})]

    async with asyncio.timeout(5):
        await lost.wait()

    assert not lease.held

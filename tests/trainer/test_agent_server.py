from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry

from modelscaling.protocol import (
    SIGNATURE_HEADER,
    AgentState,
    AgentStatus,
    StopMode,
    StoreAddress,
    sign,
)
from modelscaling_trainer.agent.heartbeat import Heartbeat
from modelscaling_trainer.agent.server import make_application
from modelscaling_trainer.worker_protocol import GrowthRejected
from tests.trainer.agent_builders import make_assignment, make_progress, make_rejection, make_stop
from tests.trainer.steered_agent import SteeredAgent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from modelscaling.configuration import Message

pytestmark = pytest.mark.process  # listens on this machine

KEY = b"the run's key"


class Caller:
    """Sends requests in the operator's place."""

    def __init__(self, client: TestClient) -> None:  # type: ignore[type-arg]
        self._client = client

    async def __call__(
        self, method: str, path: str, body: Message | bytes = b"", *, key: bytes = KEY
    ) -> tuple[int, str]:
        content = body if isinstance(body, bytes) else body.model_dump_json().encode()
        signature = sign(key, method=method, path=path, body=content)
        response = await self._client.request(
            method, path, data=content or None, headers={SIGNATURE_HEADER: signature}
        )
        return response.status, await response.text()


@pytest.fixture
def agent() -> SteeredAgent:
    return SteeredAgent()


@pytest.fixture
async def call(agent: SteeredAgent) -> AsyncIterator[Caller]:
    """Calls an agent whose answers are held back for a moment at most."""
    async with _serving(agent, wait_s=0.01) as caller:
        yield caller


@pytest.fixture
async def patient_call(agent: SteeredAgent) -> AsyncIterator[Caller]:
    """Calls an agent whose answers are held back for as long as a test may take."""
    async with _serving(agent, wait_s=60) as caller:
        yield caller


@asynccontextmanager
async def _serving(agent: SteeredAgent, *, wait_s: float) -> AsyncIterator[Caller]:
    application = make_application(
        agent,
        Heartbeat(agent, index=0, key=KEY),
        CollectorRegistry(),
        key=KEY,
        store_wait_s=wait_s,
        status_wait_s=wait_s,
    )
    async with TestClient(TestServer(application)) as client:
        yield Caller(client)


async def test_an_assignment_is_obeyed_repeated_and_outdated(call: Caller) -> None:
    status, body = await call("POST", "/v1/group", make_assignment(1, 1, generation=2))
    assert status == 202
    obeyed = AgentStatus.model_validate_json(body)
    assert obeyed.generation == 2
    assert obeyed.assignment_digest == make_assignment(1, 1, generation=2).digest()

    status, _ = await call("POST", "/v1/group", make_assignment(1, 1, generation=2))
    assert status == 202

    status, body = await call("POST", "/v1/group", make_assignment(1, 1, generation=1))
    assert status == 409
    assert AgentStatus.model_validate_json(body) == obeyed


async def test_a_stop_is_obeyed_and_an_older_one_turned_away(call: Caller) -> None:
    await call("POST", "/v1/group", make_assignment(1, 1, generation=2))

    status, _ = await call("POST", "/v1/stop", make_stop(generation=1))
    assert status == 409

    status, body = await call("POST", "/v1/stop", make_stop(StopMode.RELEASE, generation=3))
    assert status == 202
    assert AgentStatus.model_validate_json(body).state is AgentState.STOPPING


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        pytest.param(
            "/v1/group", make_assignment(1, run_uid="another"), 403, "'another'", id="other run"
        ),
        pytest.param(
            "/v1/stop", make_stop(run_uid="another"), 403, "'another'", id="a stop of another run"
        ),
        pytest.param(
            "/v1/group", make_assignment(2), 422, "the pod has 1; replace the pod", id="no place"
        ),
        pytest.param("/v1/group", b"{}", 400, "is not a GroupAssignment", id="no assignment"),
        pytest.param("/v1/stop", b"not JSON", 400, "is not a StopRequest", id="no JSON"),
    ],
)
async def test_what_cannot_be_obeyed_is_refused_with_the_reason(
    call: Caller, path: str, body: Message | bytes, status: int, words: str
) -> None:
    answer, text = await call("POST", path, body)

    assert answer == status
    assert words in text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/status"),
        ("GET", "/v1/store?generation=1&attempt=1"),
        ("GET", "/v1/heartbeat?generation=1&index=1"),
        ("POST", "/v1/group"),
        ("POST", "/v1/stop"),
    ],
)
async def test_nothing_below_v1_is_done_without_the_runs_key(
    call: Caller, method: str, path: str
) -> None:
    status, text = await call(method, path, key=b"another run's key")

    assert status == 401
    assert SIGNATURE_HEADER in text


async def test_a_signature_is_for_one_path_with_its_query_and_one_body(call: Caller) -> None:
    path = "/v1/store?generation=1&attempt=1"
    signature = sign(KEY, method="GET", path=path, body=b"")

    response = await call._client.get(
        "/v1/store?generation=2&attempt=1", headers={SIGNATURE_HEADER: signature}
    )

    assert response.status == 401


@pytest.mark.parametrize(
    ("query", "status"),
    [
        pytest.param("generation=2&attempt=1", 404, id="its own group, whose store is not open"),
        pytest.param("generation=3&attempt=1", 404, id="a group that it has not heard of yet"),
        pytest.param("generation=1&attempt=1", 409, id="an older group"),
        pytest.param("generation=x&attempt=1", 400, id="no number"),
        pytest.param("attempt=1", 400, id="no generation"),
        pytest.param("generation=2", 400, id="no attempt"),
    ],
)
async def test_the_store_is_told_only_for_the_newest_group(
    call: Caller, query: str, status: int
) -> None:
    await call("POST", "/v1/group", make_assignment(1, 1, generation=2))

    answer, _ = await call("GET", f"/v1/store?{query}")

    assert answer == status


async def test_a_member_is_told_where_the_attempt_that_goes_on_meets(
    call: Caller, agent: SteeredAgent
) -> None:
    agent.assign(make_assignment(1, 1, 1, generation=2, leaving=1))
    agent.learn(attempt=3, broken_attempt=2, store_port=4242, with_leaving=True)

    for asked in (1, 2, 3):
        status, body = await call("GET", f"/v1/store?generation=2&attempt={asked}")

        assert status == 200
        assert StoreAddress.model_validate_json(body) == StoreAddress(
            generation=2, attempt=3, port=4242, with_leaving=True
        )
    assert agent.facts.broken_attempt == 2


async def test_to_ask_for_the_next_attempt_is_to_say_that_this_one_is_broken(
    patient_call: Caller, agent: SteeredAgent
) -> None:
    agent.assign(make_assignment(1, 1, generation=2))
    agent.train(attempt=1)

    answer = asyncio.create_task(patient_call("GET", "/v1/store?generation=2&attempt=2"))
    await agent.is_awaited()
    assert agent.facts.broken_attempt == 1
    assert agent.facts.workers[0].broken_because == "a member has left it and asks for attempt 2"

    agent.train(attempt=2, store_port=4343)
    status, body = await answer
    assert status == 200
    assert StoreAddress.model_validate_json(body).port == 4343


async def test_a_member_of_an_old_group_breaks_nothing_in_the_new_one(
    call: Caller, agent: SteeredAgent
) -> None:
    agent.assign(make_assignment(1, 1, generation=2))
    agent.train(attempt=1)

    status, _ = await call("GET", "/v1/store?generation=1&attempt=7")

    assert status == 409
    assert agent.facts.broken_attempt == 0
    assert agent.facts.workers[0].broken_because is None


async def test_a_status_is_answered_at_once_to_whoever_knows_none_or_an_older_one(
    patient_call: Caller, agent: SteeredAgent
) -> None:
    agent.assign(make_assignment(1, 1, generation=2))

    for query in ("", f"?after={agent.version - 1}"):
        status, body = await patient_call("GET", f"/v1/status{query}")

        assert status == 200
        assert AgentStatus.model_validate_json(body) == agent.status()


async def test_a_status_that_is_known_is_answered_in_the_end(
    call: Caller, agent: SteeredAgent
) -> None:
    status, body = await call("GET", f"/v1/status?after={agent.version}")

    assert status == 200
    assert AgentStatus.model_validate_json(body).version == agent.version


async def test_all_who_wait_for_another_status_are_answered_when_something_changes(
    patient_call: Caller, agent: SteeredAgent
) -> None:
    known = agent.version
    waiting = [
        asyncio.create_task(patient_call("GET", f"/v1/status?after={known}")) for _ in range(3)
    ]
    await agent.is_awaited(times=3)
    agent.learn(progress=make_progress(step=1))
    agent.show_lost(frozenset({4}))

    for answer in asyncio.as_completed(waiting):
        status, body = await answer

        assert status == 200
        assert AgentStatus.model_validate_json(body).lost == (4,)


async def test_progress_alone_wakes_nobody(call: Caller, agent: SteeredAgent) -> None:
    known = agent.version
    agent.learn(progress=make_progress(step=1))

    _, body = await call("GET", f"/v1/status?after={known}")

    status = AgentStatus.model_validate_json(body)
    assert status.version == known
    assert status.progress == make_progress(step=1)


async def test_growth_that_is_taken_back_is_told_to_whoever_waits(
    patient_call: Caller, agent: SteeredAgent
) -> None:
    agent.assign(make_assignment(1, 1, generation=2))
    agent.train()
    waiting = asyncio.create_task(patient_call("GET", f"/v1/status?after={agent.version}"))
    await agent.is_awaited()
    agent.hear(GrowthRejected(generation=2, attempt=1, rejection=make_rejection()))

    _, body = await waiting

    status = AgentStatus.model_validate_json(body)
    assert (status.state, status.failure) == (AgentState.WARM, None)
    assert status.growth_rejection == make_rejection()


async def test_the_end_of_the_agent_is_told_to_whoever_waits(
    patient_call: Caller, agent: SteeredAgent
) -> None:
    waiting = asyncio.create_task(patient_call("GET", f"/v1/status?after={agent.version}"))
    await agent.is_awaited()
    agent.end()

    _, body = await waiting

    assert AgentStatus.model_validate_json(body).state is AgentState.ENDED


async def test_a_version_that_is_no_number_is_refused(call: Caller) -> None:
    status, text = await call("GET", "/v1/status?after=-1")

    assert status == 400
    assert text == "after='-1' is not a number\n"


@pytest.mark.parametrize(
    ("query", "status"),
    [
        pytest.param("generation=3&index=1", 404, id="a group that it has not heard of yet"),
        pytest.param("generation=1&index=1", 409, id="an older group"),
        pytest.param("generation=2", 400, id="no index"),
        pytest.param("index=1", 400, id="no generation"),
    ],
)
async def test_a_heartbeat_is_refused_where_there_is_no_such_group(
    call: Caller, agent: SteeredAgent, query: str, status: int
) -> None:
    agent.assign(make_assignment(1, 1, generation=2))

    answer, _ = await call("GET", f"/v1/heartbeat?{query}")

    assert answer == status


async def test_an_agent_that_starts_is_healthy_and_not_ready(call: Caller) -> None:
    assert await call("GET", "/healthz") == (200, "Starting\n")
    assert await call("GET", "/readyz") == (503, "Starting\n")

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry

from modelscaling.protocol import (
    SIGNATURE_HEADER,
    AgentState,
    AgentStatus,
    StopMode,
    sign,
)
from modelscaling_trainer.agent.agent import Agent
from modelscaling_trainer.agent.fencing import Identity
from modelscaling_trainer.agent.server import make_application
from modelscaling_trainer.agent.settings import AgentSettings
from modelscaling_trainer.agent.store_lookup import StoreUnknownError
from tests.trainer.agent_builders import (
    RUN_UID,
    make_assignment,
    make_configuration,
    make_stop,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from modelscaling.configuration import Message
    from modelscaling.protocol import Member, Progress, StoreAddress
    from modelscaling_trainer.figures import ProcessFigures

pytestmark = pytest.mark.process  # listens on this machine

KEY = b"the run's key"


class NoObserver:
    """Looks away."""

    def on_progress(self, progress: Progress) -> None: ...

    def on_figures(self, rank: int, figures: ProcessFigures) -> None: ...


async def unknown(leader: Member, generation: int) -> StoreAddress:
    raise StoreUnknownError(f"{leader} of generation {generation}")


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
async def call(tmp_path: Path) -> AsyncIterator[Caller]:
    """An agent whose workers have not been started."""
    agent = Agent(
        AgentSettings(
            identity=Identity(run_uid=RUN_UID, index=0, processes=1),
            configuration=make_configuration(),
            scratch=tmp_path,
            checkpoint_directory=None,
        ),
        observer=NoObserver(),
        look_up_store=unknown,
        environment={},
    )
    application = make_application(agent, CollectorRegistry(), key=KEY, store_wait_s=0.01)
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
        ("GET", "/v1/store?generation=1"),
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
    path = "/v1/store?generation=1"
    signature = sign(KEY, method="GET", path=path, body=b"")

    response = await call._client.get(
        "/v1/store?generation=2", headers={SIGNATURE_HEADER: signature}
    )

    assert response.status == 401


@pytest.mark.parametrize(
    ("query", "status"),
    [
        pytest.param("generation=2", 404, id="its own group, whose store is not open"),
        pytest.param("generation=3", 404, id="a group that it has not heard of yet"),
        pytest.param("generation=1", 409, id="an older group"),
        pytest.param("generation=x", 400, id="no number"),
        pytest.param("step=1", 400, id="no generation"),
    ],
)
async def test_the_store_is_told_only_for_the_newest_group(
    call: Caller, query: str, status: int
) -> None:
    await call("POST", "/v1/group", make_assignment(1, 1, generation=2))

    answer, _ = await call("GET", f"/v1/store?{query}")

    assert answer == status


async def test_an_agent_that_starts_is_healthy_and_not_ready(call: Caller) -> None:
    assert await call("GET", "/healthz") == (200, "Starting\n")
    assert await call("GET", "/readyz") == (503, "Starting\n")

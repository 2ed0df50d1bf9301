"""The agent on HTTP: health and metrics for anybody, `/v1` for who has the run's key."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import ValidationError

from modelscaling.protocol import (
    SIGNATURE_HEADER,
    AgentState,
    GroupAssignment,
    StopRequest,
    StoreAddress,
    is_signed,
)
from modelscaling_trainer.agent.fencing import Verdict

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler, Middleware

    from modelscaling.configuration import Message
    from modelscaling_trainer.agent.agent import Agent
    from modelscaling_trainer.agent.facts import Facts
    from modelscaling_trainer.agent.fencing import Judgement
    from modelscaling_trainer.agent.heartbeat import Heartbeat
    from modelscaling_trainer.agent.settings import PodSettings

_STORE_WAIT_S = 5.0
_STATUS_WAIT_S = 10.0
_SHUTDOWN_TIMEOUT_S = 0.5

_REFUSALS = {
    Verdict.OTHER_RUN: HTTPStatus.FORBIDDEN,
    Verdict.NOT_A_MEMBER: HTTPStatus.UNPROCESSABLE_ENTITY,
}

_log = logging.getLogger(__name__)
_M = TypeVar("_M", bound="Message")


async def start_server(
    agent: Agent, heartbeat: Heartbeat, registry: CollectorRegistry, settings: PodSettings
) -> web.AppRunner:
    """Listen; the caller cleans the runner up."""
    runner = web.AppRunner(
        make_application(agent, heartbeat, registry, key=settings.key),
        access_log=None,
        shutdown_timeout=_SHUTDOWN_TIMEOUT_S,
    )
    await runner.setup()
    await web.TCPSite(runner, settings.bind_address, settings.port).start()
    return runner


def make_application(
    agent: Agent,
    heartbeat: Heartbeat,
    registry: CollectorRegistry,
    *,
    key: bytes,
    store_wait_s: float = _STORE_WAIT_S,
    status_wait_s: float = _STATUS_WAIT_S,
) -> web.Application:
    """Return the agent's routes: the table in `modelscaling.protocol`.

    An answer to a member that asks for the store is held back for at most `store_wait_s`, one to
    whoever waits for another status for at most `status_wait_s`.
    """
    endpoints = _Endpoints(
        agent, heartbeat, registry, store_wait_s=store_wait_s, status_wait_s=status_wait_s
    )
    application = web.Application(middlewares=[_signature_check(key)])
    application.add_routes(
        [
            web.get("/healthz", endpoints.health),
            web.get("/readyz", endpoints.readiness),
            web.get("/metrics", endpoints.metrics),
            web.get("/v1/status", endpoints.status),
            web.get("/v1/store", endpoints.store),
            web.get("/v1/heartbeat", endpoints.heartbeat),
            web.post("/v1/group", endpoints.group),
            web.post("/v1/stop", endpoints.stop),
        ]
    )
    return application


def _signature_check(key: bytes) -> Middleware:
    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith("/v1/") and not is_signed(
            key,
            request.headers.get(SIGNATURE_HEADER),
            method=request.method,
            path=request.raw_path,
            body=await request.read(),
        ):
            _log.warning(
                "a request without the run's signature was refused",
                extra={"peer": request.remote, "path": request.path},
            )
            return _text(
                HTTPStatus.UNAUTHORIZED,
                f"{SIGNATURE_HEADER} is missing or is not this request's; sign method, path and "
                f"body with the key in the run's Secret",
            )
        return await handler(request)

    return check


class _Endpoints:
    """What each path does."""

    def __init__(
        self,
        agent: Agent,
        heartbeat: Heartbeat,
        registry: CollectorRegistry,
        *,
        store_wait_s: float,
        status_wait_s: float,
    ) -> None:
        self._agent = agent
        self._heartbeat = heartbeat
        self._registry = registry
        self._store_wait_s = store_wait_s
        self._status_wait_s = status_wait_s

    async def health(self, _request: web.Request) -> web.Response:
        """Answer 200 as long as the agent and its workers live."""
        has_ended = self._agent.state is AgentState.ENDED or self._agent.facts.is_failed
        status = HTTPStatus.SERVICE_UNAVAILABLE if has_ended else HTTPStatus.OK
        return _text(status, self._agent.state)

    async def readiness(self, _request: web.Request) -> web.Response:
        """Answer 200 once all workers have warmed up."""
        is_ready = self._agent.facts.is_warm() and self._agent.state is not AgentState.ENDED
        status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
        return _text(status, self._agent.state)

    async def metrics(self, _request: web.Request) -> web.Response:
        """Answer with all metrics."""
        return web.Response(
            body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def status(self, request: web.Request) -> web.Response:
        """Answer with the agent's status, as soon as it has another version than is known."""
        if "after" in request.query:
            await self._wait_for_version_after(_number(request, "after"))
        return _json(HTTPStatus.OK, self._agent.status())

    async def _wait_for_version_after(self, known: int) -> None:
        agent = self._agent

        def is_news() -> bool:
            return agent.version != known or agent.state is AgentState.ENDED

        await agent.wait_for(is_news, self._status_wait_s)

    async def store(self, request: web.Request) -> web.Response:
        """Answer where an attempt to form a group meets, as soon as that is known."""
        generation, attempt = _number(request, "generation"), _number(request, "attempt")
        agent = self._agent
        if attempt > 1:
            why = f"a member has left it and asks for attempt {attempt}"
            agent.attempt_is_broken(generation, attempt - 1, why)

        def is_decided() -> bool:
            return (
                agent.state is AgentState.ENDED
                or agent.facts.generation > generation
                or _store_address(agent.facts, generation, attempt) is not None
            )

        await agent.wait_for(is_decided, self._store_wait_s)
        newest = agent.facts.generation
        if newest > generation:
            return _text(HTTPStatus.CONFLICT, f"generation {newest} has taken its place")
        address = _store_address(agent.facts, generation, attempt)
        if address is None:
            return _text(
                HTTPStatus.NOT_FOUND,
                f"the store of attempt {attempt} of generation {generation} is not known here",
            )
        return _json(HTTPStatus.OK, address)

    async def heartbeat(self, request: web.Request) -> web.StreamResponse:
        """Hold the connection of another pod's agent."""
        return await self._heartbeat.attend(
            request,
            generation=_number(request, "generation"),
            index=_number(request, "index"),
        )

    async def group(self, request: web.Request) -> web.Response:
        """Take an assignment."""
        assignment = await _parse(request, GroupAssignment)
        return self._answer(self._agent.assign(assignment))

    async def stop(self, request: web.Request) -> web.Response:
        """Take a request to stop."""
        stop_request = await _parse(request, StopRequest)
        return self._answer(self._agent.stop(stop_request))

    def _answer(self, judgement: Judgement) -> web.Response:
        if judgement.verdict in {Verdict.OBEYED, Verdict.REPEATED}:
            return _json(HTTPStatus.ACCEPTED, self._agent.status())
        _log.warning(
            "a message was turned away",
            extra={"verdict": judgement.verdict.value, "why": judgement.message},
        )
        if judgement.verdict is Verdict.TURNED_AWAY:
            return _json(HTTPStatus.CONFLICT, self._agent.status())
        return _text(_REFUSALS[judgement.verdict], judgement.message)


def _store_address(facts: Facts, generation: int, attempt: int) -> StoreAddress | None:
    """Return where a group meets, in this attempt or a later one; None while that is not known."""
    if facts.generation != generation or facts.attempt < attempt:
        return None
    if not facts.hosts_store() or facts.store_port is None:
        return None
    return StoreAddress(
        generation=generation,
        port=facts.store_port,
        attempt=facts.attempt,
        with_leaving=facts.with_leaving,
    )


def _number(request: web.Request, name: str) -> int:
    """Return a number of the query; answers 400 if it is none."""
    text = request.query.get(name, "")
    if not text.isdecimal():
        raise web.HTTPBadRequest(text=f"{name}={text!r} is not a number\n")
    return int(text)


async def _parse(request: web.Request, message: type[_M]) -> _M:
    """Return the body as a message; answers 400 if it is none."""
    try:
        return message.model_validate_json(await request.read())
    except ValidationError as error:
        raise web.HTTPBadRequest(text=f"the body is not a {message.__name__}: {error}") from None


def _json(status: HTTPStatus, message: Message) -> web.Response:
    return web.Response(
        status=status, text=message.model_dump_json(), content_type="application/json"
    )


def _text(status: HTTPStatus, text: str) -> web.Response:
    return web.Response(status=status, text=text + "\n")

"""A way to the real API server on which requests are refused and lost, and watches break off."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import aiohttp
import yaml
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Iterator

_FAULT_SHARE = 0.3
"""Of all requests but watches."""
_REFUSALS = {409: "Conflict", 429: "TooManyRequests", 500: "InternalError", 503: "Unavailable"}
DROPPED, _UNHEARD, _WATCH_CUT = "dropped", "done but unheard", "watch cut"
FAULTS = {*map(str, _REFUSALS), DROPPED, _UNHEARD, _WATCH_CUT}
"""All that it does to requests."""
_FAILURES = ("500", "503")
"""What a server answers that is itself in trouble."""
_CALM_S, _BURST_S = (4.0, 10.0), (1.0, 2.0)
"""Between two bursts of failures, and of each: the shortest and the longest."""
_WATCH_S = 2.0
"""How long a watch goes well."""


Choose = Callable[[web.Request, bytes], str | None]
"""Says which fault befalls a request, if any, from its head and its body."""


def is_watch(request: web.Request) -> bool:
    """Whether a request is answered for as long as it goes well."""
    return "watch" in request.query


class DrawnFaults:
    """What happens to each request is drawn from a seed; so is when, for a second or two, all are
    refused, watches as well.
    """

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._burst_begins = self._burst_ends = time.monotonic()
        self.refused_in_bursts = 0

    def __call__(self, request: web.Request, _body: bytes) -> str | None:
        if self._is_burst():
            self.refused_in_bursts += 1
            return self._random.choice(_FAILURES)
        if is_watch(request) or self._random.random() > _FAULT_SHARE:
            return None
        kinds = sorted(FAULTS - {_WATCH_CUT})
        if request.method == "GET":
            kinds.remove("409")
        return self._random.choice(kinds)

    def _is_burst(self) -> bool:
        now = time.monotonic()
        if now >= self._burst_ends:
            self._burst_begins = now + self._random.uniform(*_CALM_S)
            self._burst_ends = self._burst_begins + self._random.uniform(*_BURST_S)
        return now >= self._burst_begins


class FinalizerConflicts:
    """kopf may put its finalizer on at the second try, and take it off at the third: by then no
    event of a run that is being deleted is left.
    """

    def __init__(self) -> None:
        self._left = {"add": 1, "remove": 2}

    def __call__(self, request: web.Request, body: bytes) -> str | None:
        # Only kopf sends JSON patches.
        if request.content_type != "application/json-patch+json":
            return None
        for operation in json.loads(body):
            verb = operation["op"]
            if self._left.get(verb):
                self._left[verb] -= 1
                return "409"
        return None


class FaultyApi:
    """A proxy on the loopback, which does to requests what `choose` says."""

    def __init__(self, kubeconfig: Path, choose: Choose) -> None:
        self.counts: Counter[str] = Counter()
        self._choose = choose
        self._server, self._ssl = _server_of(kubeconfig)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        fault = self._choose(request, body)
        if fault is None and is_watch(request):
            return await self._watch(request)
        if fault is None:
            return await self._forward(request, body)
        self.counts[fault] += 1
        if fault == _UNHEARD:
            await self._forward(request, body)
        if fault in {DROPPED, _UNHEARD}:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return web.json_response(
            {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "code": int(fault),
                "reason": _REFUSALS[int(fault)],
                "message": "a fault of the test",
            },
            status=int(fault),
            headers={"Retry-After": "1"} if fault == "429" else {},
        )

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        async with self._send(request, body) as answer:
            kept = ("Content-Type", "Retry-After")
            return web.Response(
                body=await answer.read(),
                status=answer.status,
                headers={name: answer.headers[name] for name in kept if name in answer.headers},
            )

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        try:
            async with self._send(request, b"") as answer, asyncio.timeout(_WATCH_S):
                response.set_status(answer.status)
                await response.prepare(request)
                async for data in answer.content.iter_any():
                    await response.write(data)
        except TimeoutError:
            self.counts[_WATCH_CUT] += 1
            if request.transport is not None:
                request.transport.abort()
        return response

    def _send(self, request: web.Request, body: bytes) -> aiohttp.client._RequestContextManager:
        session: aiohttp.ClientSession = request.app[_SESSION]
        kept = ("Content-Type", "Accept")
        return session.request(
            request.method,
            f"{self._server}{request.rel_url}",
            data=body or None,
            headers={name: request.headers[name] for name in kept if name in request.headers},
            ssl=self._ssl,
        )


_SESSION = web.AppKey("session", aiohttp.ClientSession)


@contextmanager
def faulty_api(
    kubeconfig: Path, directory: Path, choose: Choose
) -> Iterator[tuple[FaultyApi, Path]]:
    """Yield the proxy, and the kubeconfig of who is to use it."""
    api = FaultyApi(kubeconfig, choose)
    started = threading.Event()
    ports: list[int] = []
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def serve() -> None:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{path:.*}", api.handle)
        async with aiohttp.ClientSession() as app[_SESSION]:
            runner = web.AppRunner(app, shutdown_timeout=1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            ports.append(runner.addresses[0][1])
            started.set()
            await over.wait()
            await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=[serve()])
    thread.start()
    try:
        assert started.wait(30)
        yield api, _write_kubeconfig(directory, ports[0])
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


def _server_of(kubeconfig: Path) -> tuple[str, ssl.SSLContext]:
    """Return the address of the API server and how to be known there."""
    content = yaml.safe_load(kubeconfig.read_text())
    cluster, user = content["clusters"][0]["cluster"], content["users"][0]["user"]
    context = ssl.create_default_context(cadata=_pem(cluster, "certificate-authority").decode())
    with tempfile.NamedTemporaryFile() as pem:
        pem.write(_pem(user, "client-certificate") + b"\n" + _pem(user, "client-key"))
        pem.flush()
        context.load_cert_chain(pem.name)
    return cluster["server"], context


def _pem(fields: dict[str, str], name: str) -> bytes:
    if name in fields:
        return Path(fields[name]).read_bytes()
    return base64.b64decode(fields[f"{name}-data"])


def _write_kubeconfig(directory: Path, port: int) -> Path:
    file = directory / "faulty.kubeconfig"
    here = "faulty"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": here,
        "clusters": [{"name": here, "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": here, "user": {}}],
        "contexts": [{"name": here, "context": {"cluster": here, "user": here}}],
    }
    file.write_text(yaml.safe_dump(content))
    return file

"""A fake API server on loopback: enough of one to hold objects, and to fail as a real one does."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web
from kubernetes.aio.client.configuration import Configuration

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass(slots=True)
class FakeApi:
    """Objects by path, with resource versions; `answers` are given instead, once each."""

    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: list[web.Response] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    hangs: bool = False
    busy_path: str = ""
    """Requests for it are refused."""
    url: str = ""
    _version: int = 0

    @property
    def configuration(self) -> Configuration:
        configuration = Configuration()
        configuration.host = self.url
        return configuration

    async def serve(self) -> AsyncIterator[FakeApi]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield self
        await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path, dict(request.query)))
        body = await request.json() if request.can_read_body else None
        self.bodies.append(body)
        if self.hangs:
            await asyncio.Event().wait()
        if self.answers:
            return self.answers.pop(0)
        if request.path == self.busy_path:
            return _status(503, "busy")
        return self._keep(request.method, request.path, body)

    def _keep(  # noqa: PLR0911 - one answer a verb
        self, method: str, path: str, body: Any
    ) -> web.Response:
        if method == "POST":
            path = f"{path}/{body['metadata']['name']}"
            if path in self.objects:
                return _status(409, "already exists")
            known = {"uid": f"uid-{self._version}", "creationTimestamp": "2026-01-01T00:00:00Z"}
            return self._store(path, {**body, "metadata": {**body["metadata"], **known}}, 201)
        if method == "PATCH":
            return self._apply(path, body)
        present = self.objects.get(path)
        if present is None:
            return _status(404, f"{path} not found")
        if method == "PUT":
            if body["metadata"]["resourceVersion"] != present["metadata"]["resourceVersion"]:
                return _status(409, "the object has been modified")
            return self._store(path, body, 200)
        return web.json_response(present)

    def _apply(self, path: str, body: dict[str, Any]) -> web.Response:
        path = path.removesuffix("/status")
        present = self.objects.get(path, {"metadata": {}})
        expected = body["metadata"].get("resourceVersion")
        if expected is not None and expected != present["metadata"].get("resourceVersion"):
            return _status(409, "the object has been modified")
        metadata = {**present["metadata"], **body["metadata"]}
        return self._store(path, {**present, **body, "metadata": metadata}, 200)

    def _store(self, path: str, body: dict[str, Any], status: int) -> web.Response:
        self._version += 1
        metadata = {**body["metadata"], "resourceVersion": str(self._version)}
        self.objects[path] = {**body, "metadata": metadata}
        return web.json_response(self.objects[path], status=status)


def _status(code: int, message: str, **headers: str) -> web.Response:
    return web.json_response(
        {"kind": "Status", "message": message, "code": code}, status=code, headers=headers
    )


status_answer = _status

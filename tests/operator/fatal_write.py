"""Kills the operator before a write that is chosen, and has the next one started, as a Deployment
does.
"""

from __future__ import annotations

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from tests.operator.faulty_api import DROPPED

if TYPE_CHECKING:
    from concurrent.futures import Future

    from aiohttp import web

    from tests.operator.conftest import OperatorProcess

_OF_NO_CHANGE = {"leases", "events"}


class FatalWrite:
    """Chooses what a faulty API server does: nothing, but for one write that is dropped."""

    def __init__(self) -> None:
        self.dropped: list[str] = []
        """What the dropped writes would have done, such as `POST pods`."""
        self._left = 0
        self._operator: OperatorProcess | None = None
        self._starter = ThreadPoolExecutor(max_workers=1)
        self._successor: Future[None] | None = None
        self._told: dict[str, Any] = {}

    def arm(self, operator: OperatorProcess, number: int) -> None:
        """Have an operator die before the write of this number from now on, counted from 1."""
        self._operator, self._left = operator, number

    def disarm(self) -> bool:
        """Return whether it died; its successor serves by then."""
        self._left = 0
        successor, self._successor = self._successor, None
        if successor is not None:
            successor.result()
        return successor is not None

    def __call__(self, request: web.Request, body: bytes) -> str | None:
        if request.method == "GET":
            return None
        # Below /…/namespaces/<namespace>/: all that the operator writes.
        resource = request.path.partition("/namespaces/")[2].split("/")[1]
        if resource in _OF_NO_CHANGE or self._is_only_progress(body) or self._left == 0:
            return None
        self._left -= 1
        if self._left:
            return None
        assert self._operator is not None
        self._operator.end(signal.SIGKILL)
        self._successor = self._starter.submit(self._operator.start)
        self.dropped.append(f"{request.method} {resource}")
        return DROPPED

    def _is_only_progress(self, body: bytes) -> bool:
        """Whether a write tells no more of a run than how far it has come since the last one."""
        content = json.loads(body or b"{}")
        if not isinstance(content, dict) or "status" not in content:
            return False
        before, self._told = self._told, {**content["status"], "progress": None}
        return before == self._told

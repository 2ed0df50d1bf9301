"""Questions to the Prometheus that scrapes the cluster."""

from __future__ import annotations

import json
import time
import urllib.parse
import urllib.request
from threading import Event
from typing import Any

_TIMEOUT_S = 10
_POLL_S = 0.5


def series(prometheus: str, expression: str) -> list[dict[str, Any]]:
    """Return the series that an expression yields now."""
    url = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found


def wait_for_series(
    prometheus: str, expression: str, *, present: bool = True, deadline_s: float = 60
) -> list[dict[str, Any]]:
    """Return the series of an expression once there are some (or none); fail at the deadline.

    Prometheus has nothing to wait on, so this asks again and again.
    """
    end = time.monotonic() + deadline_s
    while bool(found := series(prometheus, expression)) is not present:
        assert time.monotonic() < end, f"{expression!r}: {len(found)} series after {deadline_s} s"
        Event().wait(_POLL_S)
    return found

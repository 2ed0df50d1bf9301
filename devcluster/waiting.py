"""Wait for a condition with a deadline."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from devcluster.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable

_POLL_S = 0.05


def wait_until(
    holds: Callable[[], bool], *, what: str, timeout_s: float, hint: Callable[[], str] = str
) -> None:
    """Return when `holds` does; after `timeout_s` raise an error with `what` and the hint."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what} did not happen within {timeout_s:g} s. {hint()}".strip())
        time.sleep(_POLL_S)

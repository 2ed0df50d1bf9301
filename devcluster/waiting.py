"""Wait for a condition with a deadline."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from devcluster.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable

_POLL_S = 0.05

_T = TypeVar("_T")


def wait_until(
    look: Callable[[], _T | None], *, what: str, timeout_s: float, hint: Callable[[], str] = str
) -> _T:
    """Return what `look` finds, once it is true; after `timeout_s` raise an error with `what` and
    the hint.
    """
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        if time.monotonic() > deadline:
            raise ClusterError(f"{what} did not happen within {timeout_s:g} s. {hint()}".strip())
        time.sleep(_POLL_S)
    return found

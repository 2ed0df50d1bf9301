"""One `up` or `down` at a time for a checkout."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from devcluster.progress import say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devcluster.layout import Layout


@contextlib.contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """Hold the checkout's lock; it is on the directory, so that no file is left of it."""
    layout.home.mkdir(exist_ok=True)
    handle = os.open(layout.home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another `up` or `down` of this checkout")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)

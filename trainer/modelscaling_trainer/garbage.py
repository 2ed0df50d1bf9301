"""When Python looks for reference cycles: not while a group waits for it.

A look takes half a second where torch and a model are loaded, and comes when many objects were
made, which is just when a process takes its place in a new group. Modules that torch has sharded
are in cycles with what shards them, so the memory of a state that was left is free only after a
look.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def uncollected() -> Iterator[None]:
    """Look for no cycles inside, unless it is asked for."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

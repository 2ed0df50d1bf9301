"""Telling the agent that a worker lives, from a thread beside the one that trains.

A process that is stopped, or that is caught in a call which never gives the interpreter back, goes
silent; one that waits for its peers says so. That tells the one that hangs from those that it
holds up.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from modelscaling_trainer.waiting import is_waiting
from modelscaling_trainer.worker_protocol import Alive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from modelscaling_trainer.worker_protocol import Event

ALIVE_EVERY_S = 1.0


@contextmanager
def told_alive(send: Callable[[Event], None], *, every_s: float = ALIVE_EVERY_S) -> Iterator[None]:
    """Send `Alive` again and again until the end."""
    is_over = threading.Event()

    def tell() -> None:
        while not is_over.wait(every_s):
            send(Alive(is_waiting=is_waiting()))

    thread = threading.Thread(target=tell, name="alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()

from __future__ import annotations

import threading
from queue import Queue

from modelscaling_trainer.alive import told_alive
from modelscaling_trainer.worker_protocol import Alive, Event

TIMEOUT_S = 10


def test_a_worker_tells_again_and_again_that_it_lives_until_the_end() -> None:
    said: Queue[Event] = Queue()
    with told_alive(said.put, every_s=0.001):
        for _ in range(3):
            assert said.get(timeout=TIMEOUT_S) == Alive(is_waiting=False)

    assert "alive" not in {thread.name for thread in threading.enumerate()}

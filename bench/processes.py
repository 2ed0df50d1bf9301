"""Processes that belong together: by who started them, or by a mark in their environment, which
all their descendants inherit.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from contextlib import suppress
from pathlib import Path

_VARIABLE = "MODELSCALING_BENCH_MARK"
_END_TIMEOUT_S = 10.0
_POLL_S = 0.02


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that have not been waited for."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


class ProcessMark:
    """One mark, and the processes that carry it.

    So a pod's processes are ended together even where their parents died before them: on a node
    the container's cgroup does that, here the mark does.
    """

    def __init__(self) -> None:
        self._value = uuid.uuid4().hex

    def environment(self) -> dict[str, str]:
        """Return what a process is started with to carry the mark."""
        return {_VARIABLE: self._value}

    def pids(self) -> frozenset[int]:
        """Return the processes that carry it and have not ended."""
        entry = f"{_VARIABLE}={self._value}".encode()
        return frozenset(
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/environ")
            if entry in _entries(path)
        )

    def send(self, number: signal.Signals) -> None:
        """Send a signal to all of them."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self) -> None:
        """Kill all of them, also those that are started meanwhile.

        Raises:
            TimeoutError: one does not go.
        """
        deadline = time.monotonic() + _END_TIMEOUT_S
        while self.pids():
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{sorted(self.pids())} live {_END_TIMEOUT_S:.0f} s after a kill"
                )
            self.send(signal.SIGKILL)
            time.sleep(_POLL_S)


def _entries(environ: Path) -> list[bytes]:
    """Return a process' environment; nothing of one that has ended or is not ours."""
    try:
        return environ.read_bytes().split(b"\0")
    except OSError:
        return []

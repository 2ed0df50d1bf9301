"""The log of one of the agent's children: passed on to the agent's own, and its end kept."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import deque
from typing import TYPE_CHECKING

from modelscaling_trainer.agent.pipe import InPipe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_LAST_LINES = 20
_LINE_MAX_BYTES = 4096
_END_TIMEOUT_S = 0.5
"""From the end of the process to that of its log, which its own children may hold open."""


class ProcessLog:
    """One child's log."""

    def __init__(self, pipe: InPipe, label: str) -> None:
        """Take the pipe that the child writes to; `open` makes one."""
        self._pipe = pipe
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self.label = label
        """What its lines begin with."""

    @classmethod
    async def open(cls, label: str) -> ProcessLog:
        """Make a log whose other end a child is to take."""
        return cls(await InPipe.open(), label)

    @property
    def other_fd(self) -> int:
        """What the child writes to."""
        return self._pipe.other_fd

    @property
    def last_lines(self) -> str:
        """The end of it."""
        return "\n".join(self._last_lines)

    def close_other_end(self) -> None:
        """Leave the other end to the child."""
        self._pipe.close_other_end()

    def close(self) -> None:
        """Read no more."""
        self._pipe.close()

    @contextlib.asynccontextmanager
    async def passed_on(self) -> AsyncIterator[None]:
        """Pass it on to this process' standard error, until shortly after the end of the block."""
        task = asyncio.create_task(self._pass_on())
        try:
            yield
        finally:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(task, _END_TIMEOUT_S)
            self.close()

    async def _pass_on(self) -> None:
        async for line in self._pipe.lines():
            text = line[:_LINE_MAX_BYTES].decode(errors="replace").rstrip()
            self._last_lines.append(text)
            sys.stderr.write(f"[{self.label}] {text}\n")
        sys.stderr.flush()

"""One worker as its agent sees it: a process, a pipe of commands, a pipe of events, its log."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelscaling_trainer.agent.pipe import InPipe, OutPipe
from modelscaling_trainer.agent.process_log import ProcessLog
from modelscaling_trainer.worker_protocol import encode, parse_event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from modelscaling_trainer.worker_protocol import Command, Event

    Fork = Callable[[int, int, int], Awaitable["ForkedProcess"]]
    """Makes a process of the descriptors of its commands, its events and its log."""

_EXIT_TIMEOUT_S = 5.0
"""From the end of a worker's events to the end of its process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkedProcess:
    """A process that somebody else waits for."""

    pid: int
    """Also the number of its process group, soon after its start."""
    exit_code: asyncio.Future[int | None]
    """Done when it has ended: negative for a signal, None where nobody knows."""


class WorkerProcess:
    """A worker from its start to its end."""

    def __init__(
        self, process: ForkedProcess, *, commands: OutPipe, events: InPipe, log: ProcessLog
    ) -> None:
        """Take a started process; `start` makes one."""
        self._process = process
        self._commands = commands
        self._events = events
        self._log = log

    @classmethod
    async def start(cls, fork: Fork, *, label: str) -> WorkerProcess:
        """Start a worker, whose log lines begin with `label`; raises what `fork` raises."""
        commands, events = await OutPipe.open(), await InPipe.open()
        log = await ProcessLog.open(label)
        ends = (commands, events, log)
        try:
            process = await fork(*(end.other_fd for end in ends))
        except BaseException:
            for end in ends:
                end.close()
            raise
        finally:
            for end in ends:
                end.close_other_end()
        return cls(process, commands=commands, events=events, log=log)

    @property
    def label(self) -> str:
        """What its log lines begin with."""
        return self._log.label

    @label.setter
    def label(self, label: str) -> None:
        self._log.label = label

    @property
    def last_lines(self) -> str:
        """The end of its log."""
        return self._log.last_lines

    def send(self, command: Command) -> None:
        """Tell the worker; nothing happens if it has ended."""
        self._commands.write(encode(command))

    def kill(self) -> None:
        """End it and its children at once."""
        exit_code = self._process.exit_code
        if exit_code.done() and exit_code.result() is not None:
            return  # its number may be another's by now
        # It may not have made its own process group yet.
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(self._process.pid, signal.SIGKILL)

    async def run(self, on_event: Callable[[Event], None]) -> int | None:
        """Report events until the worker has ended; return its exit code, negative for a signal
        and None where that is not known.

        The worker never outlives this: when it is cancelled, the worker is killed.
        """
        try:
            async with self._log.passed_on():
                try:
                    async for line in self._events.lines():
                        on_event(parse_event(line))
                    return await self._wait()
                finally:
                    self.kill()
        finally:
            self._events.close()
            self._commands.close()

    async def _wait(self) -> int | None:
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(asyncio.shield(self._process.exit_code), _EXIT_TIMEOUT_S)
        self.kill()
        return await self._process.exit_code

"""One worker as its agent sees it: a process, a pipe of commands, a pipe of events, its log."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from typing import TYPE_CHECKING

from modelscaling_trainer.worker_protocol import encode, parse_event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from modelscaling_trainer.worker_protocol import Command, Event

_COMMAND = (sys.executable, "-m", "modelscaling_trainer.worker")
_LAST_LINES = 20
_LINE_MAX_BYTES = 4096
_READ_BYTES = 65536
_EXIT_TIMEOUT_S = 5.0
"""From the end of a worker's events to the end of its process."""
_LOG_TIMEOUT_S = 0.5
"""From the end of the process to that of its log, which its own children may hold open."""


class WorkerProcess:
    """A worker from its start to its end."""

    def __init__(self, process: asyncio.subprocess.Process, events: _Pipe, log: _Pipe) -> None:
        """Take a started process; `start` makes one."""
        self._process = process
        self._events = events
        self._log = log
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self.label = f"pid {process.pid}"
        """What its log lines begin with."""

    @classmethod
    async def start(
        cls, environment: Mapping[str, str], command: Sequence[str] = _COMMAND
    ) -> WorkerProcess:
        """Start a worker; its last argument is the descriptor for its events."""
        events, log = await _Pipe.open(), await _Pipe.open()
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                str(events.write_fd),
                stdin=asyncio.subprocess.PIPE,
                stdout=log.write_fd,
                stderr=log.write_fd,
                pass_fds=(events.write_fd,),
                env=environment,
                # Its own session: an interrupt at the terminal is for the agent, and the worker's
                # own children end with it.
                start_new_session=True,
            )
        finally:
            events.close_write_end()
            log.close_write_end()
        return cls(process, events, log)

    @property
    def last_lines(self) -> str:
        """The end of its log."""
        return "\n".join(self._last_lines)

    def send(self, command: Command) -> None:
        """Tell the worker; nothing happens if it has ended."""
        assert self._process.stdin
        if not self._process.stdin.is_closing():
            self._process.stdin.write(encode(command))

    def kill(self) -> None:
        """End it and its children at once."""
        # macOS refuses it for a process that has ended but was not waited for.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def run(self, on_event: Callable[[Event], None]) -> int:
        """Report events until the worker has ended; return its exit code, negative for a signal.

        The worker never outlives this: when it is cancelled, the worker is killed.
        """
        log = asyncio.create_task(self._pass_log_on())
        try:
            async for line in self._events.lines():
                on_event(parse_event(line))
            return await self._reap()
        finally:
            self.kill()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(log, _LOG_TIMEOUT_S)
            self._events.close()
            self._log.close()

    async def _reap(self) -> int:
        try:
            return await asyncio.wait_for(self._process.wait(), _EXIT_TIMEOUT_S)
        except TimeoutError:
            self.kill()
            return await self._process.wait()

    async def _pass_log_on(self) -> None:
        async for line in self._log.lines():
            text = line[:_LINE_MAX_BYTES].decode(errors="replace").rstrip()
            self._last_lines.append(text)
            sys.stderr.write(f"[{self.label}] {text}\n")
        sys.stderr.flush()


class _Pipe:
    """A pipe whose read end belongs to the event loop."""

    def __init__(
        self, reader: asyncio.StreamReader, transport: asyncio.ReadTransport, write_fd: int
    ) -> None:
        self._reader = reader
        self._transport = transport
        self.write_fd = write_fd

    @classmethod
    async def open(cls) -> _Pipe:
        read_fd, write_fd = os.pipe()
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_fd, "rb", buffering=0)
        )
        return cls(reader, transport, write_fd)

    async def lines(self) -> AsyncIterator[bytes]:
        """Yield lines of any length, the last one even without its end."""
        rest = b""
        while chunk := await self._reader.read(_READ_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line
        if rest:
            yield rest

    def close_write_end(self) -> None:
        os.close(self.write_fd)

    def close(self) -> None:
        self._transport.close()

"""The agent's end of its zygote: starts it, asks it for workers, hears when they end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from modelscaling.mesh import Mesh
from modelscaling_trainer.agent.pipe import read_lines
from modelscaling_trainer.agent.process_log import ProcessLog
from modelscaling_trainer.agent.worker_process import ForkedProcess
from modelscaling_trainer.zygote_protocol import (
    Exited,
    Fork,
    Forked,
    ImportFor,
    encode,
    parse_reply,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelscaling_trainer.zygote_protocol import ZygoteReply

_MODULE = "modelscaling_trainer.zygote"


class ZygoteEndedError(Exception):
    """The zygote has ended, and makes no worker any more."""


class ZygoteProcess:
    """A zygote from its start to its end."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        *,
        control: socket.socket,
        log: ProcessLog,
        mesh: Mesh | None,
    ) -> None:
        """Take a started process; `start` makes one."""
        self._process = process
        self._control = control
        self._log = log
        self._mesh = mesh
        self._one_at_a_time = asyncio.Lock()
        self._forked: asyncio.Future[ForkedProcess] | None = None
        """The answer that is awaited."""
        self._workers: dict[int, asyncio.Future[int | None]] = {}
        self.has_ended = False

    @classmethod
    async def start(
        cls, environment: Mapping[str, str], *, mesh: Mesh | None, module: str = _MODULE
    ) -> ZygoteProcess:
        """Start one that imports what the mesh needs; `run` has to be awaited from then on."""
        log = await ProcessLog.open("zygote")
        mine, its = socket.socketpair()
        mine.setblocking(False)
        with its:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", module),
                str(its.fileno()),
                TypeAdapter(Mesh | None).dump_json(mesh).decode(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log.other_fd,
                stderr=log.other_fd,
                pass_fds=(its.fileno(),),
                env=environment,
                # An interrupt at the terminal is for the agent.
                start_new_session=True,
            )
        log.close_other_end()
        return cls(process, control=mine, log=log, mesh=mesh)

    async def fork(self, commands: int, events: int, log: int) -> ForkedProcess:
        """Return a new worker, made of these descriptors; waits while the zygote still imports.

        Raises:
            ZygoteEndedError: it has ended, for the reason that its log gives.
        """
        async with self._one_at_a_time:
            if self.has_ended:
                raise ZygoteEndedError(self._describe_end())
            self._forked = asyncio.get_running_loop().create_future()
            with contextlib.suppress(ConnectionError):  # its end is noticed by `run`
                socket.send_fds(self._control, [encode(Fork())], [commands, events, log])
            return await self._forked

    def prepare_for(self, mesh: Mesh) -> None:
        """Have it import what a mesh needs, for the workers to come."""
        if mesh != self._mesh and not self.has_ended:
            self._mesh = mesh
            with contextlib.suppress(ConnectionError):
                self._control.send(encode(ImportFor(mesh=mesh)))

    def kill(self) -> None:
        """End it at once; its workers end when their commands do."""
        # Not by the process object, which would wait for it in the event loop's place.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)

    async def run(self) -> None:
        """Take in what it says until it has ended; it never outlives this."""
        reader, writer = await asyncio.open_connection(sock=self._control)
        try:
            async with self._log.passed_on():
                try:
                    # One that ends with a request unread resets the connection.
                    with contextlib.suppress(ConnectionError):
                        async for line in read_lines(reader):
                            self._take_in(parse_reply(line))
                finally:
                    self.kill()
                    await self._process.wait()
        finally:
            self.has_ended = True
            writer.close()
            self._leave_nobody_waiting()

    def _take_in(self, reply: ZygoteReply) -> None:
        match reply:
            case Forked(pid=pid):
                exit_code: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
                self._workers[pid] = exit_code
                if self._forked and not self._forked.done():
                    self._forked.set_result(ForkedProcess(pid=pid, exit_code=exit_code))
            case Exited(pid=pid, code=code):
                self._workers.pop(pid).set_result(code)

    def _leave_nobody_waiting(self) -> None:
        if self._forked and not self._forked.done():
            self._forked.set_exception(ZygoteEndedError(self._describe_end()))
        for exit_code in self._workers.values():
            exit_code.set_result(None)

    def _describe_end(self) -> str:
        return (
            f"the process that starts the workers ended with exit code "
            f"{self._process.returncode}: {self._log.last_lines}"
        )

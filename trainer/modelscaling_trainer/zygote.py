"""The zygote: a process that has imported all that a worker needs, and forks workers on demand.

To import torch takes seconds, to fork takes milliseconds; so a worker that has died is replaced
before its peers have met again. The agent starts it as `python -m modelscaling_trainer.zygote
CONTROL_FD MESH`, with its end of a socket (`zygote_protocol.py`) and the mesh to import for, as
JSON.

It has one thread and never computes anything, so that nothing is copied half-done, and never
touches a device, as CUDA does not work in a child of a process that did.
"""

from __future__ import annotations

import gc
import logging
import os
import selectors
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from pydantic import TypeAdapter

from modelscaling.exit_code import ExitCode
from modelscaling.mesh import Mesh
from modelscaling_trainer import worker
from modelscaling_trainer.log import configure_logging
from modelscaling_trainer.parallel import imports
from modelscaling_trainer.zygote_protocol import (
    DESCRIPTORS,
    Exited,
    Fork,
    Forked,
    ImportFor,
    encode,
    parse_request,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelscaling_trainer.zygote_protocol import ZygoteReply

    BeWorker = Callable[[BinaryIO, BinaryIO], int]
    """What a child does with its commands and its events; returns its exit code."""

_READ_BYTES = 65536

_log = logging.getLogger(__name__)


def main(be_worker: BeWorker = worker.run) -> int:
    """Fork processes that `be_worker` until the agent is gone."""
    configure_logging()
    mesh = TypeAdapter(Mesh | None).validate_json(sys.argv[2])
    with socket.socket(fileno=int(sys.argv[1])) as control:
        control.set_inheritable(False)
        if mesh is not None:
            imports.import_for(mesh)
        Zygote(control, be_worker).serve()
    return ExitCode.DONE


class Zygote:
    """Serves one agent."""

    def __init__(self, control: socket.socket, be_worker: BeWorker) -> None:
        """Take the end of the socket whose other end is the agent's, and what its children do."""
        self._control = control
        self._be_worker = be_worker
        self._children: set[int] = set()
        self._rest = b""
        self._selector = selectors.DefaultSelector()
        self._wake, self._wake_write = socket.socketpair()

    def serve(self) -> None:
        """Do what the agent asks for until it is gone, and end all workers then."""
        for end in (self._wake, self._wake_write):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wake_write.fileno())
        signal.signal(signal.SIGCHLD, _ignore)
        self._selector.register(self._control, selectors.EVENT_READ, self._obey)
        self._selector.register(self._wake, selectors.EVENT_READ, self._reap)
        # What is there now is there for good: workers need not copy it to count references.
        gc.collect()
        gc.freeze()
        try:
            while all(key.data() for key, _ in self._selector.select()):
                pass
        finally:
            for pid in self._children:
                _kill_group(pid)
                os.kill(pid, signal.SIGKILL)  # it may not have made its group yet

    def _obey(self) -> bool:
        """Do what was asked; False when the agent is gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, _READ_BYTES, DESCRIPTORS)
        except ConnectionError:
            return False
        if not data:
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            match parse_request(line):
                case Fork():
                    self._fork(descriptors)
                case ImportFor(mesh=mesh):
                    imports.import_for(mesh)
        return True

    def _fork(self, descriptors: list[int]) -> None:
        pid = os.fork()
        if pid == 0:
            self._become_worker(*descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        self._children.add(pid)
        self._tell(Forked(pid=pid))

    def _become_worker(self, commands: int, events: int, log: int) -> NoReturn:
        """Be a worker from here on, in this child, and end it."""
        code = int(ExitCode.CRASHED)
        try:
            # Its own session: an interrupt at the terminal is for the agent, and the worker's own
            # children end with it.
            os.setsid()
            self._forget()
            os.dup2(log, sys.stdout.fileno())
            os.dup2(log, sys.stderr.fileno())
            os.close(log)
            code = self._be_worker(os.fdopen(commands, "rb"), os.fdopen(events, "wb"))
        except BaseException:  # noqa: BLE001 - nothing of a worker may reach the zygote's loop
            _log.exception("the worker failed")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            # Without the clean-up of an interpreter, which is the zygote's.
            os._exit(code)

    def _forget(self) -> None:
        """Drop, in a child, what is the zygote's alone."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for end in (self._control, self._wake, self._wake_write):
            end.close()

    def _reap(self) -> bool:
        """Report the workers that have ended."""
        with suppress(BlockingIOError):
            self._wake.recv(_READ_BYTES)
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            self._children.discard(pid)
            _kill_group(pid)  # the worker's own children end with it
            self._tell(Exited(pid=pid, code=os.waitstatus_to_exitcode(status)))
        return True

    def _tell(self, reply: ZygoteReply) -> None:
        # An agent that is gone is noticed where its requests are read.
        with suppress(ConnectionError):
            self._control.sendall(encode(reply))


def _ignore(*_: object) -> None:
    """Have the signal wake the selector, and nothing else."""


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())

"""Cutting this process' connections to a group that has failed, so that its peers know at once.

gloo closes a group's connections when the last reference to the group is gone. Sharded modules,
autograd's graphs and the traceback of the failure itself hold some, and torch's `abort` and
`shutdown` of a gloo group leave connections open. A peer that waits for this process, and not for
the one that died, would wait until its collective's timeout.

A cut from another thread also ends what this process waits for in a collective, which nothing else
does before the timeout.
"""

from __future__ import annotations

import os
import socket
import stat
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_OPEN_FILES = Path("/dev/fd")
"""Linux and macOS list a process' open files there."""
_CUT_EVERY_S = 0.05


class Connections:
    """Those that this process has made since a moment."""

    def __init__(self) -> None:
        self._before = _sockets()
        self._cutting: threading.Thread | None = None
        self._is_over = threading.Event()

    def cut(self) -> None:
        """Shut down every one that is open now."""
        for descriptor, inode in _sockets() - self._before:
            _shut_down(descriptor, inode)

    def keep_cut(self) -> None:
        """Shut them down, and those that come later too: a group that is still being connected
        opens one after the other. Returns at once; may be called from any thread.
        """
        if self._cutting is None:
            self._cutting = threading.Thread(target=self._keep_cutting, name="cut", daemon=True)
            self._cutting.start()

    def let_be(self) -> None:
        """Leave them as they are from now on."""
        self._is_over.set()
        if self._cutting is not None:
            self._cutting.join()

    def _keep_cutting(self) -> None:
        self.cut()
        while not self._is_over.wait(_CUT_EVERY_S):
            self.cut()


@contextmanager
def cut_on_failure() -> Iterator[Connections]:
    """Where an exception leaves, shut down every connection that was made inside."""
    connections = Connections()
    try:
        yield connections
    except BaseException:
        connections.cut()
        raise
    finally:
        connections.let_be()


def _sockets() -> set[tuple[int, int]]:
    """Return the descriptors of this process' sockets, each with its inode: numbers come again."""
    found = set()
    for file in _OPEN_FILES.iterdir():
        with suppress(OSError):  # closed meanwhile, as the directory itself
            status = os.fstat(int(file.name))
            if stat.S_ISSOCK(status.st_mode):
                found.add((int(file.name), status.st_ino))
    return found


def _shut_down(descriptor: int, inode: int) -> None:
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
        if os.fstat(connection.fileno()).st_ino != inode:
            return  # closed meanwhile, and its number was given to another
        # gloo does not expect its listener to fail; nobody waits for that one.
        if not connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            connection.shutdown(socket.SHUT_RDWR)

"""Cutting this process' connections to a group that has failed, so that its peers know at once.

gloo closes a group's connections when the last reference to the group is gone. Sharded modules,
autograd's graphs and the traceback of the failure itself hold some, and torch's `abort` and
`shutdown` of a gloo group leave connections open. A peer that waits for this process, and not for
the one that died, would wait until its collective's timeout.
"""

from __future__ import annotations

import os
import socket
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_OPEN_FILES = Path("/dev/fd")
"""Linux and macOS list a process' open files there."""


@contextmanager
def cut_on_failure() -> Iterator[None]:
    """Where an exception leaves, shut down every connection that was made inside."""
    before = _sockets()
    try:
        yield
    except BaseException:
        for descriptor, _ in _sockets() - before:
            _shut_down(descriptor)
        raise


def _sockets() -> set[tuple[int, int]]:
    """Return the descriptors of this process' sockets, each with its inode: numbers come again."""
    found = set()
    for file in _OPEN_FILES.iterdir():
        with suppress(OSError):  # closed meanwhile, as the directory itself
            status = os.fstat(int(file.name))
            if stat.S_ISSOCK(status.st_mode):
                found.add((int(file.name), status.st_ino))
    return found


def _shut_down(descriptor: int) -> None:
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
        # gloo does not expect its listener to fail; nobody waits for that one.
        if not connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            connection.shutdown(socket.SHUT_RDWR)

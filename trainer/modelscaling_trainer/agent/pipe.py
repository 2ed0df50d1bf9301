"""Pipes between the agent and its children, whose other ends the children take."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_READ_BYTES = 65536


async def read_lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield lines of any length, the last one even without its end."""
    rest = b""
    while chunk := await reader.read(_READ_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
    if rest:
        yield rest


class InPipe:
    """A pipe that the event loop reads."""

    def __init__(
        self, reader: asyncio.StreamReader, transport: asyncio.ReadTransport, write_fd: int
    ) -> None:
        """Take both ends; `open` makes them."""
        self._reader = reader
        self._transport = transport
        self.other_fd = write_fd

    @classmethod
    async def open(cls) -> InPipe:
        """Make a pipe."""
        read_fd, write_fd = os.pipe()
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_fd, "rb", buffering=0)
        )
        return cls(reader, transport, write_fd)

    def lines(self) -> AsyncIterator[bytes]:
        """Return its lines, until the last process that holds the other end has closed it."""
        return read_lines(self._reader)

    def close_other_end(self) -> None:
        """Leave the other end to the child."""
        os.close(self.other_fd)

    def close(self) -> None:
        """Read no more."""
        self._transport.close()


class OutPipe:
    """A pipe that the event loop writes."""

    def __init__(self, transport: asyncio.WriteTransport, read_fd: int) -> None:
        """Take both ends; `open` makes them."""
        self._transport = transport
        self.other_fd = read_fd

    @classmethod
    async def open(cls) -> OutPipe:
        """Make a pipe."""
        read_fd, write_fd = os.pipe()
        transport, _ = await asyncio.get_running_loop().connect_write_pipe(
            asyncio.Protocol, os.fdopen(write_fd, "wb", buffering=0)
        )
        return cls(transport, read_fd)

    def write(self, data: bytes) -> None:
        """Write as soon as there is room; nothing happens if nobody can read it any more."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def close_other_end(self) -> None:
        """Leave the other end to the child."""
        os.close(self.other_fd)

    def close(self) -> None:
        """Write no more, not even what still waits for room."""
        if not self._transport.is_closing():
            self._transport.abort()

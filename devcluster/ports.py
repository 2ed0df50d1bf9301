"""Who listens where on this machine, from /proc: TCP sockets, and UDP ones that await anybody."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from devcluster.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from devcluster.processes import Program

_TCP_LISTENS = "0A"
_UDP_UNCONNECTED = "07"
_TABLES = {
    "tcp": _TCP_LISTENS,
    "tcp6": _TCP_LISTENS,
    "udp": _UDP_UNCONNECTED,
    "udp6": _UDP_UNCONNECTED,
}
_SOCKET_LINK = re.compile(r"socket:\[(\d+)\]")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A socket that listens."""

    protocol: str
    address: Address
    port: int
    inode: int

    def takes(self, address: str, port: int) -> bool:
        """Whether nobody else can listen there while this one does."""
        return (self.protocol, self.port) == ("tcp", port) and (
            self.address.is_unspecified or self.address == ipaddress.ip_address(address)
        )


def listeners() -> list[Listener]:
    """Return every socket of the machine that listens."""
    found: list[Listener] = []
    for table in _TABLES:
        path = Path("/proc/net") / table
        if path.exists():  # without IPv6 there are two
            found += parse(path.read_text(), table)
    return found


def parse(text: str, table: str) -> Iterator[Listener]:
    """Yield what listens from the text of /proc/net/TABLE."""
    for line in text.splitlines()[1:]:
        fields = line.split()
        if fields[3] != _TABLES[table]:
            continue
        address, _, port = fields[1].partition(":")
        yield Listener(
            protocol=table[:3],
            address=_address(address),
            port=int(port, 16),
            inode=int(fields[9]),
        )


def check_free(program: Program) -> None:
    """Raise when somebody else listens where a program has to."""
    present = listeners() if program.listens else []
    for address, port in program.listens:
        for listener in present:
            if listener.takes(address, port):
                raise ClusterError(
                    f"{program.name} needs {address}:{port}, where {_owner(listener)} listens. "
                    f"Stop that and run this again"
                )


def of_processes(pids: Iterable[int]) -> list[tuple[int, Listener]]:
    """Return where these processes listen, with the pid."""
    by_inode = {listener.inode: listener for listener in listeners()}
    return [(pid, by_inode[inode]) for pid in pids for inode in _sockets(pid) if inode in by_inode]


def _owner(listener: Listener) -> str:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and listener.inode in _sockets(int(entry.name)):
            with suppress(OSError):
                return f"{(entry / 'comm').read_text().strip()} (process {entry.name})"
    return "another process"


def _sockets(pid: int) -> set[int]:
    found = set()
    with suppress(OSError):
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                match = _SOCKET_LINK.fullmatch(os.readlink(file))  # noqa: PTH115 - not a path
                if match:
                    found.add(int(match[1]))
    return found


def _address(text: str) -> Address:
    # The kernel prints the address as 32-bit words of this machine's byte order.
    words = struct.pack(
        "=" + "I" * (len(text) // 8), *(int(text[i : i + 8], 16) for i in range(0, len(text), 8))
    )
    family = socket.AF_INET if len(words) == 4 else socket.AF_INET6  # noqa: PLR2004
    address = ipaddress.ip_address(socket.inet_ntop(family, words))
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from devcluster.errors import ClusterError
from devcluster.ports import check_free, listeners, parse
from devcluster.processes import Program

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:2382 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 501 1
   1: 00000000:07E8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 502 1
   2: 0100600A:01BB 0200F40A:9C40 01 00000000:00000000 00:00000000 00000000     0        0 503 1
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx rx tr
   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 5
   1: 0000000000000000FFFF00000100600A:01BB 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 6
"""


def make_program(port: int) -> Program:
    return Program(
        name="prometheus",
        binaries=Path("/nowhere"),
        arguments=(),
        listens=(("127.0.0.1", port),),
    )


def test_connections_are_not_listeners() -> None:
    found = [(str(one.address), one.port, one.inode) for one in parse(TCP, "tcp")]

    assert found == [("127.0.0.1", 9090, 501), ("0.0.0.0", 2024, 502)]


def test_an_ipv4_address_in_the_ipv6_table_is_one() -> None:
    found = [(str(one.address), one.port) for one in parse(TCP6, "tcp6")]

    assert found == [("::", 80), ("10.96.0.1", 443)]


@pytest.mark.parametrize(
    ("address", "port", "taken"),
    [
        ("127.0.0.1", 9090, True),
        ("127.0.0.2", 9090, False),
        ("10.96.0.1", 2024, True),
        ("10.96.0.1", 2025, False),
    ],
)
def test_a_listener_on_every_address_takes_each(address: str, port: int, *, taken: bool) -> None:
    assert any(one.takes(address, port) for one in parse(TCP, "tcp")) is taken


def test_who_has_the_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        assert any(one.takes("127.0.0.1", port) for one in listeners())
        with pytest.raises(ClusterError, match=rf"needs 127.0.0.1:{port}, where .*\(process \d+\)"):
            check_free(make_program(port))

from __future__ import annotations

import socket

import pytest

from modelscaling_trainer.connections import cut_on_failure


def _connect(listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    mine = socket.create_connection(listener.getsockname(), timeout=5)
    theirs, _ = listener.accept()
    theirs.settimeout(5)
    return mine, theirs


def test_a_peer_knows_of_a_failure_though_the_connection_is_still_held() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        old, old_peer = _connect(listener)
        made: list[socket.socket] = []

        def fail() -> None:
            with cut_on_failure():
                made.extend(_connect(listener))
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        new, new_peer = made

        assert new_peer.recv(1) == b""
        old.sendall(b"x")
        assert old_peer.recv(1) == b"x"
        # Who listens goes on.
        later, later_peer = _connect(listener)
        for connection in (old, old_peer, new, new_peer, later, later_peer):
            connection.close()


def test_connections_outlive_what_ends_well() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with cut_on_failure():
            mine, theirs = _connect(listener)
        with mine, theirs:
            mine.sendall(b"x")
            assert theirs.recv(1) == b"x"


def test_a_cut_from_another_thread_ends_what_is_waited_for_and_reaches_later_connections() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with cut_on_failure() as connections:
            mine, theirs = _connect(listener)
            connections.keep_cut()
            assert mine.recv(1) == b""  # it would have waited for its peer

            later, later_peer = _connect(listener)
            assert later_peer.recv(1) == b""
        after, after_peer = _connect(listener)
        after.sendall(b"x")

        assert after_peer.recv(1) == b"x"
        for connection in (mine, theirs, later, later_peer, after, after_peer):
            connection.close()

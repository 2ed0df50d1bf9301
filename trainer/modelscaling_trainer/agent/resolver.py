"""How long a worker may wait for the name of an address.

torch's TCPStore asks for the name of each peer that connects, to log it, and answers nobody
meanwhile: five questions whenever a group of two meets. A name server that is down, as it may be
when a node is lost, holds up each for 10 s by default. torch gives up asking in a process in which
one question had no answer (`formatSockAddr` in c10d's socket.cpp).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_OPTIONS = "RES_OPTIONS"
"""Read by glibc; see resolv.conf(5)."""


def resolver_environment(given: Mapping[str, str]) -> dict[str, str]:
    """Return the resolver's variables for a worker; what the user has set stays. One question of a
    second is the least there is. Workers reach each other by addresses, so no answer is needed.
    """
    return {} if _OPTIONS in given else {_OPTIONS: "timeout:1 attempts:1"}

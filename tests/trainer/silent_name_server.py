"""`python silent_name_server.py COMMAND …`: be that command where a name server never answers.

To be run in network and mount namespaces of its own, of which nothing is left when it ends.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys
import tempfile

_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_DOMAIN = 53


def main() -> None:
    server = socket.socket(type=socket.SOCK_DGRAM)
    fcntl.ioctl(server, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
    server.bind(("127.0.0.1", _DOMAIN))
    server.set_inheritable(True)
    with tempfile.NamedTemporaryFile("w") as configuration:
        configuration.write("nameserver 127.0.0.1\n")
        configuration.flush()
        subprocess.run(["mount", "--bind", configuration.name, "/etc/resolv.conf"], check=True)
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()

"""`python -m devcluster up | status | down`."""

from __future__ import annotations

import argparse
import os
import sys

from devcluster.errors import ClusterError
from devcluster.layout import MAX_NODES, Layout
from devcluster.progress import say
from devcluster.removal import down
from devcluster.status import status
from devcluster.up import up


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit code is 0 when it did what it should."""
    given = _parser().parse_args(arguments)
    layout = Layout.here()
    try:
        if given.command == "up":
            up(layout, given.nodes)
        elif given.command == "down":
            down(layout, with_binaries=given.all)
        else:
            return 0 if status(layout) else 1
    except ClusterError as error:
        say(f"devcluster: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; `up` goes on from here, `down` removes it")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="devcluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("up", help="start the cluster, or what is missing of it")
    start.add_argument(
        "--nodes",
        type=_node_count,
        default=os.environ.get("NODES") or None,
        help="number of nodes; $NODES, else as many as there are, or 3",
    )
    commands.add_parser("status", help="show what runs; exit code 1 if something does not")
    stop = commands.add_parser("down", help="remove the cluster")
    stop.add_argument("--all", action="store_true", help="remove the compiled programs as well")
    return parser


def _node_count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_NODES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of nodes from 1 to {MAX_NODES}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())

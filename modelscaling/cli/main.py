"""The command line's entry: finds the command and reports what is wrong in one way.

Only the command that was asked for is imported, so that help and version answer at once.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from modelscaling import __version__
from modelscaling.cli.error import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_COMMANDS = {
    "train": "train a ModelScaling on this machine, without a cluster",
    "validate": "say what the API server and the operator would say of a file",
    "grow": "make a checkpoint of a larger model from one of a smaller",
    "model": "print a model's parameters and FLOPs per token",
    "export": "write a trained model as a directory that Hugging Face's transformers loads",
}
"""The commands, each a module of this package with `add_arguments` and `run`."""

_EXIT_USAGE = 2
_EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0 for success, 1 for failure, 2 for a wrong use or an invalid spec."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _make_parser(command=next((word for word in words if word in _COMMANDS), None))
    options = parser.parse_args(words)
    try:
        return int(options.run(options))
    except UsageError as error:
        for line in error.lines:
            print(f"error: {line}", file=sys.stderr)
        return _EXIT_USAGE
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED


def _make_parser(command: str | None) -> argparse.ArgumentParser:
    """Return the parser, with the arguments of the command that was asked for."""
    parser = argparse.ArgumentParser(
        prog=_program_name(sys.argv[0]),
        description="Scale PyTorch models: on Kubernetes, and on this machine.",
    )
    parser.add_argument("--version", action="version", version=f"modelscaling {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, summary in _COMMANDS.items():
        one = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == command:
            module = import_module(f"modelscaling.cli.{name}")
            module.add_arguments(one)
            one.set_defaults(run=module.run)
    return parser


def _program_name(path: str) -> str:
    """Return what the user has typed: kubectl runs `kubectl-modelscaling` as its own command."""
    name = Path(path).name
    return "kubectl modelscaling" if name.startswith("kubectl-") else "modelscaling"


if __name__ == "__main__":
    sys.exit(main())

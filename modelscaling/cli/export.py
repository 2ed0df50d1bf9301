"""`modelscaling export`: a checkpoint as a directory that Hugging Face's transformers loads.

The trainer, a program of its own, does it: it reads the checkpoint's tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from modelscaling.cli.error import UsageError
from modelscaling.cli.trainer import become_trainer, require_trainer
from modelscaling.export_request import EXPORT_MODULE, ExportRequest

if TYPE_CHECKING:
    import argparse
    from typing import NoReturn

_EXAMPLE = """\
example:
  modelscaling export runs/a exported/a --tokenizer tokenizer.json

exit code: 0 it is written, 1 the checkpoint is damaged or it could not be written, 2 the arguments
are wrong
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = _EXAMPLE
    parser.add_argument(
        "source",
        type=Path,
        metavar="RUN",
        help="the directory of a run's checkpoints (the newest one is taken), or one checkpoint",
    )
    parser.add_argument(
        "output", type=Path, metavar="OUT", help="the directory to write; it does not exist yet"
    )
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="the run's tokenizer.json, to be copied"
    )
    parser.add_argument(
        "--json", action="store_true", help="write one object of JSON to standard output"
    )


def run(options: argparse.Namespace) -> NoReturn:
    """Check the arguments, then become the trainer's program."""
    if not options.source.is_dir():
        raise UsageError(f"{options.source}: is not a directory; give that of a run's checkpoints")
    if options.output.exists():
        raise UsageError(f"{options.output}: exists; remove it, or write to another directory")
    if options.tokenizer and not options.tokenizer.is_file():
        raise UsageError(f"{options.tokenizer}: is not a file; give the run's tokenizer.json")
    require_trainer(EXPORT_MODULE)
    request = ExportRequest(
        source=options.source.absolute(),
        output=options.output.absolute(),
        tokenizer=options.tokenizer and options.tokenizer.absolute(),
        is_json=options.json,
    )
    become_trainer(EXPORT_MODULE, request)

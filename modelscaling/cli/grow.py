"""`modelscaling grow`: make a larger model of a checkpoint or of a directory of Hugging Face's.

The command line checks the arguments; the trainer, a program of its own, takes the process over.
"""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from modelscaling.cli.error import UsageError
from modelscaling.cli.setting import parse_shape
from modelscaling.cli.trainer import become_trainer, require_trainer
from modelscaling.growth.mode import GrowthMode
from modelscaling.local_growth import GROWTH_MODULE, LocalGrowth

if TYPE_CHECKING:
    import argparse
    from typing import NoReturn

_EXAMPLE = """\
example:
  modelscaling grow runs/a runs/b --shape layers=12,hiddenSize=768 --check some.txt
  modelscaling grow Llama-3.2-1B larger --shape layers=20 --check some.txt

IN is a checkpoint, the directory of a run, of which the newest checkpoint is taken, or a directory
as transformers saves a model (config.json, safetensors, tokenizer); OUT is written as the same.
What --shape does not name stays as it is. Weights and optimizer state are grown some rows at a
time; --check needs memory for a whole model.

exit code: 0 grown, 1 it could not be read or written, 2 the arguments are wrong or the shape
cannot be reached
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = _EXAMPLE
    parser.add_argument("source", type=Path, metavar="IN", help="what is grown")
    parser.add_argument("target", type=Path, metavar="OUT", help="where to; nothing is there yet")
    parser.add_argument(
        "--shape", required=True, metavar="K=V,…", help="fields of spec.model that change"
    )
    parser.add_argument(
        "--mode",
        choices=[mode.value for mode in GrowthMode],
        default=GrowthMode.PRESERVE.value,
        help="Preserve (the default): the model computes the same, or is refused. Stack: layers "
        "are stacked naively, head size and rotary base may change, and the loss jumps",
    )
    parser.add_argument(
        "--check",
        type=Path,
        metavar="TEXTFILE",
        help="print how much the logits and the loss differ on this text",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="tokenizer.json for --check; without it that of IN, where IN has one, or else bytes",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of what new entries are drawn from"
    )
    parser.add_argument(
        "--noise",
        type=float,
        default=0.0,
        metavar="R",
        help="break the symmetry of a hidden size that is cloned by noise, relative to the weights "
        "(0.3 is usual), that cancels: the model computes the same, and trains otherwise",
    )
    parser.add_argument(
        "--json", action="store_true", help="write one object of JSON to standard output"
    )


def run(options: argparse.Namespace) -> NoReturn:
    """Check the arguments, then become the trainer."""
    work = resolve(options)
    require_trainer(GROWTH_MODULE)
    become_trainer(GROWTH_MODULE, work)


def resolve(options: argparse.Namespace) -> LocalGrowth:
    """Return what the arguments ask for.

    Raises:
        UsageError: they are wrong.
    """
    shape = parse_shape(options.shape, "--shape")
    if not options.source.is_dir():
        raise UsageError(
            f"IN: {str(options.source)!r} is not a directory; give a checkpoint, the directory "
            f"of a run, or one that transformers saved a model to"
        )
    if options.target.exists():
        raise UsageError(f"OUT: {str(options.target)!r} exists; give a new name, or remove it")
    if not 0 <= options.noise < inf:
        raise UsageError(f"--noise: {options.noise} is not a number from 0 on; 0.3 is usual")
    for option in ("check", "tokenizer"):
        path = getattr(options, option)
        if path is not None and not path.is_file():
            raise UsageError(f"--{option}: {str(path)!r} is not a file")
    return LocalGrowth(
        source=options.source.absolute(),
        target=options.target.absolute(),
        shape=shape,
        mode=GrowthMode(options.mode),
        seed=options.seed,
        noise=options.noise,
        check=options.check,
        tokenizer=options.tokenizer,
        is_json=options.json,
    )

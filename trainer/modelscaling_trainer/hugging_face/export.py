"""A checkpoint as a directory that transformers loads: the program behind `modelscaling export`,
which starts it with an `ExportRequest` as JSON on standard input.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING

from modelscaling.export_request import ExportRequest
from modelscaling.quantity import format_quantity
from modelscaling_trainer.checkpoint import catalog
from modelscaling_trainer.checkpoint.weights import CheckpointWeights
from modelscaling_trainer.errors import CheckpointError, ConfigurationError
from modelscaling_trainer.hugging_face.configuration import config_from
from modelscaling_trainer.hugging_face.directory import TOKENIZER
from modelscaling_trainer.hugging_face.writing import write_directory
from modelscaling_trainer.merged_weights import MergedWeights

if TYPE_CHECKING:
    from pathlib import Path

    from modelscaling.shape import ModelShape
    from modelscaling_trainer.checkpoint.catalog import Checkpoint


def main() -> int:
    """Export what the request on standard input names; return the process' exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    request = ExportRequest.model_validate_json(sys.stdin.buffer.read())
    try:
        checkpoint = find_checkpoint(request.source)
        source = MergedWeights(CheckpointWeights(checkpoint))
        companions = {TOKENIZER: request.tokenizer} if request.tokenizer else {}
        write_directory(source, request.output, companions=companions)
    except (CheckpointError, ConfigurationError) as error:
        return _fail(error.message)
    except OSError as error:
        return _fail(f"{str(request.output)!r} cannot be written: {error}")
    say = _as_json if request.is_json else _as_text
    sys.stdout.write(say(request.output, checkpoint.counters.step, source.shape) + "\n")
    return 0


def _fail(message: str) -> int:
    sys.stderr.write(f"error: {message}\n")
    return 1


def _as_json(output: Path, step: int, shape: ModelShape) -> str:
    (architecture,) = config_from(shape)["architectures"]
    content = {
        "output": str(output),
        "step": step,
        "parameters": shape.parameters(),
        "architecture": architecture,
    }
    return json.dumps(content)


def _as_text(output: Path, step: int, shape: ModelShape) -> str:
    (architecture,) = config_from(shape)["architectures"]
    parameters = format_quantity(shape.parameters())
    return f"{output}: {parameters} parameters of step {step} as {architecture}"


def find_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint at a path, or the newest one in the directory.

    Raises:
        CheckpointError: there is none, or it is torn.
        ConfigurationError: it is of a newer format.
    """
    found = catalog.find_at(path)
    if found is None:
        raise CheckpointError(
            f"{str(path)!r} has no checkpoint; give the directory that a run saves to, or one of "
            f"the step-… directories in it"
        )
    return found


if __name__ == "__main__":
    sys.exit(main())

"""Growing a checkpoint, or a directory of Hugging Face's, on this machine.

`modelscaling grow` starts it as `python -m modelscaling_trainer.growth.offline`, with a
`LocalGrowth` as JSON on standard input. The exit code is 0 where the grown model is there, 1
where something could not be read or written, and 2 where the shape cannot be reached.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from pydantic.alias_generators import to_camel

from modelscaling.api.data import BuiltInTokenizer, TokenizerFile
from modelscaling.api.model import ModelSpec
from modelscaling.api.validation import InvalidSpecError, parse_model
from modelscaling.growth.plan import GrowthPlan, UnreachableShapeError, plan_growth
from modelscaling.local_growth import LocalGrowth
from modelscaling.resolve import resolve_shape
from modelscaling_trainer.data.tokenizer import open_tokenizer
from modelscaling_trainer.errors import CheckpointError, ConfigurationError
from modelscaling_trainer.growth.check import Comparison, compare, read_tokens
from modelscaling_trainer.growth.original import open_original
from modelscaling_trainer.log import LEVEL_VARIABLE, configure_logging

if TYPE_CHECKING:
    from pathlib import Path

    from modelscaling.shape import ModelShape

_EXIT_FAILURE = 1
_EXIT_USAGE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """What was done."""

    path: Path
    plan: GrowthPlan
    comparison: Comparison | None


def main() -> int:
    """Grow what the work on standard input names; return the process' exit code."""
    os.environ.setdefault(LEVEL_VARIABLE, "WARNING")
    configure_logging()
    work = LocalGrowth.model_validate_json(sys.stdin.buffer.read())
    try:
        grown = grow(work)
    except (InvalidSpecError, UnreachableShapeError) as error:
        problems = error.problems if isinstance(error, InvalidSpecError) else error.obstacles
        return _fail(_EXIT_USAGE, *(f"--shape: {problem}" for problem in problems))
    except ConfigurationError as error:
        return _fail(_EXIT_USAGE, error.message)
    except CheckpointError as error:
        return _fail(_EXIT_FAILURE, error.message)
    except OSError as error:
        return _fail(_EXIT_FAILURE, f"OUT: could not write {str(work.target)!r}: {error}")
    print(json.dumps(_as_json(grown)) if work.is_json else _as_text(grown))  # noqa: T201
    return 0


def grow(work: LocalGrowth) -> Grown:
    """Grow a model, and compare the two where that is asked for.

    Raises:
        ConfigurationError: there is no model, there is nothing to grow, or the text does not go
            with it.
        InvalidSpecError, UnreachableShapeError: the shape is none, or cannot be reached.
        CheckpointError: the model is damaged.
        OSError: the grown one cannot be written.
    """
    original = open_original(work.source)
    shape = original.weights.shape
    plan = plan_growth(shape, target_shape(shape, work.shape), work.mode, noise=work.noise)
    if not plan.steps:
        raise ConfigurationError(
            "NothingToGrow", "--shape: the model has this shape already; name a larger one"
        )
    ids = None
    if work.check is not None:
        file = work.tokenizer or original.tokenizer
        tokenizer = TokenizerFile(file=str(file)) if file else BuiltInTokenizer.BYTE
        ids = read_tokens(work.check, open_tokenizer(tokenizer), shape)
    written = original.write(plan, work.target, mode=work.mode, seed=work.seed)
    comparison = None if ids is None else compare(original.weights, written.weights, ids)
    return Grown(path=written.path, plan=plan, comparison=comparison)


def target_shape(shape: ModelShape, changes: dict[str, Any]) -> ModelShape:
    """Return a shape with fields of `spec.model` changed.

    Raises:
        InvalidSpecError: that is no shape.
    """
    declared = {field.name for field in fields(shape)} & ModelSpec.model_fields.keys()
    spec = {to_camel(name): getattr(shape, name) for name in declared}
    spec["ropeTheta"] = str(shape.rope_theta)
    resolved = resolve_shape(parse_model(spec | changes), default_vocabulary=None)
    return replace(shape, **{name: getattr(resolved, name) for name in declared})


def _fail(code: int, *lines: str) -> int:
    for line in lines:
        print(f"error: {line}", file=sys.stderr)  # noqa: T201
    return code


def _as_json(grown: Grown) -> dict[str, Any]:
    plan = grown.plan
    return {
        "output": str(grown.path),
        "parameters_before": plan.before.parameters(),
        "parameters": plan.shape.parameters(),
        "shape": {to_camel(name): value for name, value in asdict(plan.shape).items()},
        "exactness": plan.exactness.value,
        "steps": [
            {
                "field": step.field,
                "exactness": step.exactness.value,
                "description": step.description,
            }
            for step in plan.steps
        ],
        "check": grown.comparison and asdict(grown.comparison),
    }


def _as_text(grown: Grown) -> str:
    plan, comparison = grown.plan, grown.comparison
    lines = [
        *(f"{step.exactness.value:<9} {step.description}" for step in plan.steps),
        f"parameters {plan.before.parameters():,} to {plan.shape.parameters():,}",
    ]
    if comparison:
        difference = (
            f"largest logit difference {comparison.largest_difference:.3g} of logits up to "
            f"{comparison.largest_logit:.3g}, over {comparison.tokens} tokens"
        )
        loss = f"loss {comparison.loss_before:.6f} before, {comparison.loss_after:.6f} after"
        lines += [difference, loss]
    return "\n".join([*lines, f"wrote {grown.path}"])


if __name__ == "__main__":
    sys.exit(main())

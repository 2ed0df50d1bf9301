"""`modelscaling model`: the exact size of a model, and what a token costs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pydantic.alias_generators import to_camel

from modelscaling.api.validation import InvalidSpecError, parse_model
from modelscaling.cli.error import UsageError, invalid
from modelscaling.cli.resource import model_scalings, read_documents
from modelscaling.cli.setting import parse_shape
from modelscaling.preset import PRESETS
from modelscaling.quantity import format_quantity
from modelscaling.resolve import BYTE_VOCABULARY, resolve_shape
from modelscaling.shape import FlopsConvention

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from modelscaling.shape import ModelShape

_EXAMPLE = """\
example:
  modelscaling model --preset llama-3.1-8b --context 4096
  modelscaling model --shape parameters=20M,vocabularySize=32000
  modelscaling model --shape layers=8,hiddenSize=512,heads=8,kvHeads=4,feedForwardSize=1536

exit code: 0 printed, 2 the arguments, the file or the shape are wrong
"""
_PRESET = "preset"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = _EXAMPLE
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "-f",
        "--file",
        metavar="FILE",
        help="YAML file with a ModelScaling (the first one in it); - is standard input",
    )
    source.add_argument("--preset", metavar="NAME", help=f"one of {', '.join(PRESETS)}")
    source.add_argument(
        "--shape", metavar="K=V,…", help="fields of spec.model; vocabularySize is 256 by default"
    )
    parser.add_argument(
        "--context", metavar="T", help="tokens in a sample, instead of the model's contextLength"
    )
    parser.add_argument(
        "--json", action="store_true", help="write one object of JSON to standard output"
    )


def run(options: argparse.Namespace) -> int:
    """Print the model's numbers."""
    where, fields = _fields(options)
    if options.context:
        fields = {**fields, **parse_shape(f"contextLength={options.context}", "--context")}
    try:
        shape = resolve_shape(parse_model(fields), default_vocabulary=BYTE_VOCABULARY)
    except InvalidSpecError as error:
        raise invalid(where, error.problems) from None
    print(json.dumps(_as_json(shape)) if options.json else _as_text(shape))
    return 0


def _fields(options: argparse.Namespace) -> tuple[str, Mapping[str, Any]]:
    """Return where the model comes from, and its fields as in `spec.model`."""
    if options.preset:
        return "--preset", {_PRESET: options.preset}
    if options.shape:
        return "--shape", parse_shape(options.shape, "--shape")
    document = model_scalings(options.file, read_documents(options.file))[0]
    spec = document.get("spec")
    model = spec.get("model") if isinstance(spec, dict) else None
    if not isinstance(model, dict):
        raise UsageError(f"{options.file}: spec.model: is required; set it")
    return options.file, model


def _as_json(shape: ModelShape) -> dict[str, Any]:
    return {
        "parameters": shape.parameters(),
        **({"adapter_parameters": shape.adapter_parameters()} if shape.lora else {}),
        "flops_per_token": {
            convention.value: shape.flops_per_token(convention) for convention in FlopsConvention
        },
        "shape": _camel(asdict(shape)),
    }


def _as_text(shape: ModelShape) -> str:
    content = _as_json(shape)
    lines = [
        f"parameters  {shape.parameters():,} ({format_quantity(shape.parameters())})",
        *([f"adapters    {shape.adapter_parameters():,}, trained alone"] if shape.lora else []),
        f"FLOPs per token, forward and backward, at a context of {shape.context_length:,}",
        *(f"  {name:<12}{flops:,}" for name, flops in content["flops_per_token"].items()),
        "shape",
        *_shape_lines(content["shape"]),
    ]
    return "\n".join(lines)


def _camel(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        to_camel(name): _camel(value) if isinstance(value, dict) else value
        for name, value in fields.items()
    }


def _shape_lines(fields: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return a line for each field; what the shape does not have is left out."""
    lines = []
    for name, value in fields.items():
        if isinstance(value, dict):
            lines += _shape_lines(value, f"{prefix}{name}.")
        elif value is not None:
            lines.append(f"  {prefix + name:<36}{value}")
    return lines

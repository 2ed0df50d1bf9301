"""Writing a model as a directory that transformers loads.

Weights are streamed, some rows in memory at a time, into safetensors files of a few gigabytes. All
is written beside the directory's name and renamed when every byte is on the disk, so that whatever
has the name is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from math import prod
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from modelscaling.layout import weights
from modelscaling_trainer.checkpoint.directory import sync_directory
from modelscaling_trainer.errors import ConfigurationError
from modelscaling_trainer.hugging_face.configuration import config_from
from modelscaling_trainer.hugging_face.directory import CONFIG, INDEX, WEIGHTS
from modelscaling_trainer.hugging_face.names import their_name
from modelscaling_trainer.row_blocks import row_blocks

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from modelscaling_trainer.weight_source import WeightSource

LARGEST_FILE_BYTES = 4 << 30
_ALIGNMENT = 8
_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""What weights can be written as, with the names of the safetensors format."""


def write_directory(
    source: WeightSource,
    path: Path,
    *,
    companions: Mapping[str, Path],
    token_ids: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    largest_file_bytes: int = LARGEST_FILE_BYTES,
) -> None:
    """Write a model to a directory that does not exist yet; `companions` are copied to it under
    their names there, and `token_ids` go into its configuration.

    Raises:
        ConfigurationError: the directory exists, or no model of transformers is such a shape.
        CheckpointError: the source is damaged.
        OSError: it cannot be written.
    """
    if path.exists():
        raise ConfigurationError(
            "OutputExists", f"{str(path)!r} exists; remove it, or write to another directory"
        )
    stored_as = str(dtype).removeprefix("torch.")
    config = {**config_from(source.shape, dtype=stored_as), **(token_ids or {})}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".writing-{path.name}-{os.getpid()}")
    temporary.mkdir()
    try:
        _write_weights(source, temporary, dtype, largest_file_bytes)
        _write_json(temporary / CONFIG, config)
        for name, file in companions.items():
            shutil.copyfile(file, temporary / name)
        sync_directory(temporary)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(path.parent)


def _write_weights(
    source: WeightSource, path: Path, dtype: torch.dtype, largest_file_bytes: int
) -> None:
    sizes = weights(source.shape)
    files = _files(sizes, largest_file_bytes // dtype.itemsize)
    for name, content in files.items():
        with (path / name).open("wb") as file:
            _write_file(source, file, content, dtype)
            file.flush()
            os.fsync(file.fileno())
    if len(files) > 1:
        places = {their_name(name): file for file, content in files.items() for name in content}
        total = dtype.itemsize * sum(prod(size) for size in sizes.values())
        _write_json(path / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _files(
    sizes: Mapping[str, tuple[int, ...]], largest: int
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return the weights of each file, in the order of the model; `largest` is in elements."""
    parts: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, size in sizes.items():
        if parts[-1] and filled + prod(size) > largest:
            parts.append({})
            filled = 0
        parts[-1][name] = size
        filled += prod(size)
    if len(parts) == 1:
        return {WEIGHTS: parts[0]}
    return {
        f"model-{number:05}-of-{len(parts):05}.safetensors": part
        for number, part in enumerate(parts, start=1)
    }


def _write_file(
    source: WeightSource,
    file: BinaryIO,
    sizes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
) -> None:
    """Write a safetensors file: the length of a header of JSON, the header, the tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, size in sizes.items():
        end = start + dtype.itemsize * prod(size)
        header[their_name(name)] = {
            "dtype": _NAMES[dtype],
            "shape": size,
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for name, size in sizes.items():
        for region in row_blocks(size):
            rows = source.read(name, region).to(dtype).contiguous()
            file.write(rows.view(-1).view(torch.uint8).numpy().data)


def _write_json(file: Path, content: Mapping[str, object]) -> None:
    with file.open("w") as stream:
        json.dump(content, stream, indent=2)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())

"""Writing a model as a directory that transformers loads.

Weights are streamed, one in memory at a time, into safetensors files of a few gigabytes. All is
written beside the directory's name and renamed when every byte is on the disk, so that whatever
has the name is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from math import prod
from typing import TYPE_CHECKING, BinaryIO

from modelscaling.layout import Region, weights
from modelscaling_trainer.checkpoint.directory import sync_directory
from modelscaling_trainer.errors import ConfigurationError
from modelscaling_trainer.hugging_face.configuration import config_from
from modelscaling_trainer.hugging_face.directory import CONFIG, INDEX, TOKENIZER, WEIGHTS
from modelscaling_trainer.hugging_face.names import their_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from modelscaling_trainer.weight_source import WeightSource

LARGEST_FILE_BYTES = 4 << 30
_FLOAT32_BYTES = 4
_ALIGNMENT = 8


def write_directory(
    source: WeightSource,
    path: Path,
    *,
    tokenizer: Path | None,
    largest_file_bytes: int = LARGEST_FILE_BYTES,
) -> None:
    """Write a model to a directory that does not exist yet, in float32.

    Raises:
        ConfigurationError: the directory exists, or no model of transformers is such a shape.
        CheckpointError: the source is damaged.
        OSError: it cannot be written.
    """
    if path.exists():
        raise ConfigurationError(
            "OutputExists", f"{str(path)!r} exists; remove it, or write to another directory"
        )
    config = config_from(source.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".writing-{path.name}-{os.getpid()}")
    temporary.mkdir()
    try:
        _write_weights(source, temporary, largest_file_bytes)
        _write_json(temporary / CONFIG, config)
        if tokenizer is not None:
            shutil.copyfile(tokenizer, temporary / TOKENIZER)
        sync_directory(temporary)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(path.parent)


def _write_weights(source: WeightSource, path: Path, largest_file_bytes: int) -> None:
    files = _files(weights(source.shape), largest_file_bytes)
    for name, content in files.items():
        with (path / name).open("wb") as file:
            _write_file(source, file, content)
            file.flush()
            os.fsync(file.fileno())
    if len(files) > 1:
        places = {their_name(name): file for file, content in files.items() for name in content}
        total = sum(_bytes(size) for content in files.values() for size in content.values())
        _write_json(path / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _files(
    sizes: Mapping[str, tuple[int, ...]], largest_file_bytes: int
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return the weights of each file, in the order of the model."""
    parts: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, size in sizes.items():
        if parts[-1] and filled + _bytes(size) > largest_file_bytes:
            parts.append({})
            filled = 0
        parts[-1][name] = size
        filled += _bytes(size)
    if len(parts) == 1:
        return {WEIGHTS: parts[0]}
    return {
        f"model-{number:05}-of-{len(parts):05}.safetensors": part
        for number, part in enumerate(parts, start=1)
    }


def _write_file(source: WeightSource, file: BinaryIO, sizes: Mapping[str, tuple[int, ...]]) -> None:
    """Write a safetensors file: the length of a header of JSON, the header, the tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, size in sizes.items():
        end = start + _bytes(size)
        header[their_name(name)] = {"dtype": "F32", "shape": size, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for name, size in sizes.items():
        whole = Region((0,) * len(size), size)
        file.write(source.read(name, whole).contiguous().numpy().astype("<f4", copy=False).data)


def _bytes(size: tuple[int, ...]) -> int:
    return _FLOAT32_BYTES * prod(size)


def _write_json(file: Path, content: Mapping[str, object]) -> None:
    with file.open("w") as stream:
        json.dump(content, stream, indent=2)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())

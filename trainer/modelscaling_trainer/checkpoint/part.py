"""The file that one process writes of a checkpoint: blocks of tensors, in the safetensors format.

Each tensor of the file is one block of a tensor of the run, under the run's name for it; the
file's metadata say which block of how large a whole. The library reads it. Writing is our own, a
header before bytes that already lie in order: the library's writer for torch makes a Python object
of each tensor first, and files that only their owner can read.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

from modelscaling.layout import Region

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
"""What a checkpoint can hold, by the names of the safetensors format."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_BLOCKS = "blocks"
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block of a tensor of the run, which a part file holds."""

    name: str
    """Of the tensor."""
    dtype: str
    """One of DTYPES."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    region: Region

    @property
    def bytes(self) -> int:
        """The size of the block's data."""
        return self.region.elements * DTYPES[self.dtype].itemsize


def dtype_name(dtype: torch.dtype) -> str:
    """Return the format's name of a dtype."""
    if dtype not in _NAMES:
        raise TypeError(f"a checkpoint holds tensors of {list(DTYPES)}, not of {dtype}")
    return _NAMES[dtype]


def in_file_order(blocks: Sequence[Block]) -> list[Block]:
    """Return blocks in the order of their data: wide elements first, so that all are aligned."""
    return sorted(blocks, key=lambda block: (-DTYPES[block.dtype].itemsize, block.name))


def write_part(path: Path, blocks: Sequence[Block], data: memoryview) -> None:
    """Write a part to the disk; `data` are the bytes of all blocks, which are in file order.

    Raises:
        OSError: it could not be written; what there is of it is not removed.
    """
    write_blocks(path, blocks, [data])


def write_blocks(path: Path, blocks: Sequence[Block], contents: Iterable[memoryview]) -> None:
    """Write a part to the disk; `contents` are its bytes, in as many runs as one likes, each of
    which is asked for when those before it are written.

    Raises:
        OSError: it could not be written; what there is of it is not removed.
    """
    with path.open("wb", buffering=0) as file:
        for content in chain([memoryview(_header(blocks))], contents):
            rest = content
            while rest:
                rest = rest[file.write(rest) :]  # one call writes 2 GiB at most
        os.fsync(file.fileno())


def read_blocks(path: Path) -> list[Block]:
    """Return what a part holds, without its data.

    Raises:
        OSError, SafetensorError, ValueError, KeyError: it is damaged.
    """
    with safe_open(path, "pt") as file:
        places = json.loads(file.metadata()[_BLOCKS])
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return [
            Block(
                name=name,
                dtype=part.get_dtype(),
                shape=tuple(places[name]["shape"]),
                region=Region(tuple(places[name]["offset"]), tuple(part.get_shape())),
            )
            for name, part in slices.items()
        ]


def _header(blocks: Sequence[Block]) -> bytes:
    places = {block.name: {"shape": block.shape, "offset": block.region.offset} for block in blocks}
    header: dict[str, object] = {
        "__metadata__": {"format": "pt", _BLOCKS: json.dumps(places)},
    }
    start = 0
    for block in blocks:
        end = start + block.bytes
        header[block.name] = {
            "dtype": block.dtype,
            "shape": block.region.size,
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text

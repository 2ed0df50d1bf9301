"""What a checkpoint holds of each tensor, and in which of its files: all that a reader needs to
know of the mesh that wrote it, which is nothing.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from modelscaling.layout import Region
from modelscaling_trainer.checkpoint.part import DTYPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelscaling_trainer.checkpoint.part import Block


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A block of a tensor in a file, under the tensor's name."""

    file: str
    region: Region


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor and the blocks that it is stored in."""

    dtype: str
    """One of DTYPES."""
    shape: tuple[int, ...]
    blocks: tuple[Stored, ...]


def index(parts: Mapping[str, Sequence[Block]]) -> dict[str, StoredTensor]:
    """Return what is stored where, from what each file holds.

    Raises:
        ValueError: the blocks of a tensor do not make it up.
    """
    found: dict[tuple[str, str, tuple[int, ...]], list[Stored]] = defaultdict(list)
    for file, blocks in parts.items():
        for block in blocks:
            key = (block.name, block.dtype, block.shape)
            found[key].append(Stored(file=file, region=block.region))
    tensors: dict[str, StoredTensor] = {}
    for (name, dtype, shape), stored in sorted(found.items()):
        elements = sum(block.region.elements for block in stored)
        if name in tensors or elements != prod(shape):
            raise ValueError(
                f"the {len(stored)} blocks of {name} hold {elements} elements, and the tensor of "
                f"{dtype} {shape} has {prod(shape)}; its processes disagree on who holds what"
            )
        tensors[name] = StoredTensor(dtype=dtype, shape=shape, blocks=tuple(stored))
    return tensors


def to_json(tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """Return an index as JSON has it."""
    return {
        name: {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "blocks": [
                {"file": block.file, "offset": block.region.offset, "size": block.region.size}
                for block in tensor.blocks
            ],
        }
        for name, tensor in tensors.items()
    }


def from_json(value: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Return the index that `to_json` was given.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    return {name: _tensor_from_json(tensor) for name, tensor in value.items()}


def _tensor_from_json(value: Mapping[str, Any]) -> StoredTensor:
    if value["dtype"] not in DTYPES:
        raise ValueError(f"dtype {value['dtype']!r} is none of {list(DTYPES)}")
    return StoredTensor(
        dtype=value["dtype"],
        shape=tuple(value["shape"]),
        blocks=tuple(
            Stored(file=block["file"], region=Region(tuple(block["offset"]), tuple(block["size"])))
            for block in value["blocks"]
        ),
    )

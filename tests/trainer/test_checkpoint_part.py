from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from modelscaling.layout import Region
from modelscaling_trainer.checkpoint.part import (
    DTYPES,
    Block,
    dtype_name,
    in_file_order,
    read_blocks,
    write_part,
)
from modelscaling_trainer.checkpoint.staging import Staging

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


def make_block(name: str, tensor: Tensor, *, rows_before: int = 0, rows: int = 9) -> Block:
    region = Region((rows_before, 0), tuple(tensor.shape))
    return Block(
        name=name,
        dtype=dtype_name(tensor.dtype),
        shape=(rows, *tensor.shape[1:]),
        region=region,
    )


def write(path: Path, tensors: dict[str, Tensor]) -> list[Block]:
    blocks = in_file_order([make_block(name, tensor) for name, tensor in tensors.items()])
    staging = Staging()
    staging.copy([tensors[block.name] for block in blocks], ready=None)
    write_part(path, blocks, staging.data)
    return blocks


def make_tensors() -> dict[str, Tensor]:
    """Return one of each dtype, of odd sizes, narrow ones first by name."""
    values = torch.randn(3, 5)
    return {
        "a": values.to(torch.bfloat16),
        "b": values,
        "c": (values * 1e6).to(torch.int64),
        "d": values.to(torch.float64),
        "e": torch.randn(1, 7).to(torch.bfloat16),
    }


def test_the_library_alone_reads_what_is_written(tmp_path: Path) -> None:
    tensors = make_tensors()
    write(tmp_path / "part.safetensors", tensors)
    read = load_file(tmp_path / "part.safetensors")

    assert {tensor.dtype for tensor in tensors.values()} == set(DTYPES.values())
    assert tensors.keys() == read.keys()
    assert all(torch.equal(tensors[name], read[name]) for name in tensors)
    assert all(tensors[name].dtype == read[name].dtype for name in tensors)


def test_a_part_says_what_of_which_whole_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "part.safetensors"
    blocks = [make_block("a", torch.ones(2, 3), rows_before=4)]
    write_part(path, blocks, memoryview(bytes(24)))

    assert blocks == read_blocks(path)


def test_data_begins_and_stays_aligned(tmp_path: Path) -> None:
    path = tmp_path / "part.safetensors"
    write(path, make_tensors())
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    starts = {
        name: entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"
    }

    assert length % 8 == 0
    assert all(
        start % DTYPES[header[name]["dtype"]].itemsize == 0 for name, start in starts.items()
    )


def test_a_process_without_a_share_writes_an_empty_part(tmp_path: Path) -> None:
    write_part(tmp_path / "part.safetensors", [], memoryview(b""))

    assert read_blocks(tmp_path / "part.safetensors") == []


def test_others_may_read_a_part(tmp_path: Path) -> None:
    path, other = tmp_path / "part.safetensors", tmp_path / "other"
    write_part(path, [], memoryview(b""))
    other.touch()

    assert path.stat().st_mode == other.stat().st_mode


def test_a_part_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "part.safetensors"
    write(path, make_tensors())
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(SafetensorError):
        read_blocks(path)


def test_a_dtype_that_the_format_is_not_tested_for_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"holds tensors of \['F64'.*, not of torch.int8"):
        dtype_name(torch.int8)

from __future__ import annotations

import json

import pytest

from modelscaling.layout import Region
from modelscaling_trainer.checkpoint.index import Stored, StoredTensor, from_json, index, to_json
from modelscaling_trainer.checkpoint.part import Block


def make_block(*, offset: int, rows: int, name: str = "a", dtype: str = "F32") -> Block:
    return Block(name=name, dtype=dtype, shape=(4, 3), region=Region((offset, 0), (rows, 3)))


HALVES = {"x": [make_block(offset=0, rows=2)], "y": [make_block(offset=2, rows=2)]}


def test_an_index_says_which_file_has_which_block() -> None:
    found = index(HALVES)

    assert found == {
        "a": StoredTensor(
            dtype="F32",
            shape=(4, 3),
            blocks=(
                Stored(file="x", region=Region((0, 0), (2, 3))),
                Stored(file="y", region=Region((2, 0), (2, 3))),
            ),
        )
    }


def test_an_index_comes_back_from_json() -> None:
    found = index(HALVES)

    assert found == from_json(json.loads(json.dumps(to_json(found))))


@pytest.mark.parametrize(
    "parts",
    [
        {"x": HALVES["x"]},
        {**HALVES, "z": HALVES["x"]},
        {**HALVES, "z": [make_block(offset=0, rows=4, dtype="F64")]},
        {"x": HALVES["x"], "y": [make_block(offset=2, rows=2, dtype="F64")]},
    ],
    ids=["a block lacks", "a block is there twice", "whole in two dtypes", "halves of two dtypes"],
)
def test_blocks_that_do_not_make_up_their_tensor_are_refused(parts: dict[str, list[Block]]) -> None:
    with pytest.raises(ValueError, match=r"blocks of a hold \d+ elements, and the tensor of"):
        index(parts)


def test_an_unknown_dtype_is_refused_by_name() -> None:
    value = {"a": {"dtype": "F4", "shape": [], "blocks": []}}

    with pytest.raises(ValueError, match="dtype 'F4' is none of"):
        from_json(value)

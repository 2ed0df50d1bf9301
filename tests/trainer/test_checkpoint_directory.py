from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from modelscaling_trainer.checkpoint.directory import check_readable, steps_in
from modelscaling_trainer.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path


def test_what_is_not_there_yet_has_no_checkpoints_and_can_be_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()

    for directory in (tmp_path, tmp_path / "new", file):
        check_readable(directory)
        assert steps_in(directory) == []


def test_a_directory_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)

    with pytest.raises(CheckpointError, match=r"loop' cannot be read: .*look after the volume"):
        check_readable(loop)

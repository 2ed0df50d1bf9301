from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from devcluster.files import write

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_with_the_right_content_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a/b"
    write(path, "x")
    before = path.stat().st_ino

    write(path, "x")
    same = path.stat().st_ino
    write(path, "y")

    assert same == before
    assert path.read_text() == "y"


def test_a_file_is_its_owners_and_half_of_one_from_before_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "key"
    (tmp_path / "key.new").write_text("half")

    write(path, b"whole")

    assert path.read_bytes() == b"whole"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]

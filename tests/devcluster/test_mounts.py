from __future__ import annotations

from pathlib import Path

import pytest

from devcluster import mounts

TABLE = r"""22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
23 22 0:21 / /proc rw - proc proc rw
24 22 8:2 / /home rw - ext4 /dev/sda2 rw
25 24 0:44 / /home/a\040b/.cluster/nodes/node-0/x rw - tmpfs tmpfs rw
26 25 0:45 / /home/a\040b/.cluster/nodes/node-0/x/y rw - tmpfs tmpfs rw
27 24 0:46 / /home/a\040b/.cluster-of-another/x rw - tmpfs tmpfs rw
"""


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mountinfo").write_text(TABLE)
    monkeypatch.setattr(mounts, "_MOUNT_TABLE", tmp_path / "mountinfo")


def test_only_what_is_below_a_directory_is_found_with_blanks_in_its_path() -> None:
    found = mounts.below(Path("/home/a b/.cluster"))

    assert found == [
        Path("/home/a b/.cluster/nodes/node-0/x"),
        Path("/home/a b/.cluster/nodes/node-0/x/y"),
    ]


@pytest.mark.parametrize(("path", "point"), [("/home/nobody", "/home"), ("/usr", "/")])
def test_the_innermost_mount_holds_a_path(path: str, point: str) -> None:
    assert mounts.mount_point_of(Path(path)) == Path(point)

from __future__ import annotations

from typing import TYPE_CHECKING

from devcluster import changes
from devcluster.layout import Layout

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_what_was_noted_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(tmp_path / "checkout")
    setting, directory, other = tmp_path / "panic", tmp_path / "made", tmp_path / "was there"
    setting.write_text("1\n")
    other.mkdir()
    monkeypatch.setattr(changes, "_KERNEL_SETTINGS", (str(setting),))
    monkeypatch.setattr(changes, "_FIXED_DIRECTORIES", (str(directory), str(other)))
    changes.note(layout)
    noted = changes.load(layout)
    assert noted is not None
    setting.write_text("10\n")
    (directory / "x").mkdir(parents=True)

    changes.revert(noted)

    assert setting.read_text().strip() == "1"
    assert (directory.exists(), other.exists()) == (False, True)


def test_a_removal_that_has_begun_is_remembered(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    changes.note(layout)
    noted = changes.load(layout)
    assert noted is not None

    changes.note_removal(layout, noted)
    after = changes.load(layout)

    assert after is not None
    assert (noted.being_removed, after.being_removed) == (False, True)
    assert after.is_of_this_boot

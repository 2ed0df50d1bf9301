from __future__ import annotations

from pathlib import Path

import pytest

from modelscaling.cli.main import main


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand beside a directory of checkpoints."""
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "out"], "nowhere: is not a directory; give that of a run's checkpoints"),
        (["runs", "runs"], "runs: exists; remove it, or write to another directory"),
        (
            ["runs", "out", "--tokenizer", "nowhere.json"],
            "nowhere.json: is not a file; give the run's tokenizer.json",
        ),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *arguments]) == 2

    assert capsys.readouterr().err == f"error: {message}\n"
    assert not Path("out").exists()

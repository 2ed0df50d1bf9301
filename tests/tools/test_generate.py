from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tools.generate.__main__ import ARTIFACTS, ROOT, main

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tools.generate.artifact import Artifact


def test_the_tree_is_what_the_source_code_generates() -> None:
    assert [artifact.path for artifact in ARTIFACTS if not artifact.is_current(ROOT)] == []


def test_every_file_that_was_generated_passes_the_check(tmp_path: Path) -> None:
    assert main([], tmp_path) == 0

    assert main(["--check"], tmp_path) == 0


@pytest.mark.parametrize("edited", [ARTIFACTS[:1], ARTIFACTS], ids=["one", "all"])
def test_files_that_were_edited_and_no_others_are_named_with_the_fix(
    edited: Sequence[Artifact], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([], tmp_path)
    for artifact in edited:
        file = tmp_path / artifact.path
        file.write_text(file.read_text() + "edited\n")
    capsys.readouterr()

    code = main(["--check"], tmp_path)

    assert code == 1
    assert capsys.readouterr().err.splitlines() == [
        f"{artifact.path} is not what the source code generates; "
        f"run 'make generate' (python -m tools.generate) and commit it"
        for artifact in edited
    ]


def test_a_check_writes_nothing(tmp_path: Path) -> None:
    assert main(["--check"], tmp_path) == 1

    assert list(tmp_path.iterdir()) == []


def test_only_what_changed_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([], tmp_path)
    (tmp_path / "docs/reference/crd.md").unlink()
    capsys.readouterr()

    main([], tmp_path)

    assert capsys.readouterr().out == "wrote docs/reference/crd.md\n"


def test_the_chart_has_the_same_definitions_as_the_repository() -> None:
    definitions, shipped = (
        {file.name: file.read_text() for file in (ROOT / folder).glob("*.yaml")}
        for folder in ("crds", "charts/modelscaling/files/crds")
    )

    assert definitions
    assert shipped == definitions

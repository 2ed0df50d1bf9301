from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from devcluster.build import _report, build_key, linker_flags
from devcluster.layout import Layout

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    (tmp_path / "cmd/coredns").mkdir(parents=True)
    for name in ("go.mod", "go.sum", "cmd/coredns/main.go"):
        (tmp_path / name).write_text(name)
    return tmp_path


def test_the_version_is_the_one_that_go_mod_requires() -> None:
    flags = linker_flags((Layout.here().sources / "go.mod").read_text())

    assert "version.gitVersion=v1." in flags
    assert "version.gitMajor=1" in flags


@pytest.mark.parametrize("name", ["go.mod", "go.sum", "cmd/coredns/main.go"])
def test_a_change_of_the_sources_asks_for_a_build(sources: Path, name: str) -> None:
    before = build_key(sources)

    (sources / name).write_text("changed")

    assert build_key(sources) != before


def test_a_python_file_asks_for_none(sources: Path) -> None:
    before = build_key(sources)

    (sources / "build.py").touch()

    assert build_key(sources) == before


def test_what_go_says_that_is_not_progress_is_kept_as_the_problem() -> None:
    said = [
        "go: downloading k8s.io/api v0.37.2",
        "k8s.io/api/core/v1",
        "# github.com/seccomp/libseccomp-golang",
        "fatal error: seccomp.h: No such file or directory",
    ]

    assert _report(said) == said[2:]

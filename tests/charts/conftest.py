"""The chart, and the real tools that read it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from tests.charts.rendered import Manifest, Render

ROOT = Path(__file__).parents[2]


def _tool(name: str) -> str:
    search = os.pathsep.join([str(ROOT / ".cluster" / "bin"), os.environ["PATH"]])
    found = shutil.which(name, path=search)
    if found is None:
        pytest.fail(f"{name} is neither in .cluster/bin nor on PATH; run 'make cluster'")
    return found


@pytest.fixture(scope="session")
def chart() -> Path:
    return ROOT / "charts" / "modelscaling"


@pytest.fixture(scope="session")
def helm() -> str:
    return _tool("helm")


@pytest.fixture(scope="session")
def promtool() -> str:
    return _tool("promtool")


@pytest.fixture(scope="session")
def package(helm: str, chart: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart as it is published."""
    folder = tmp_path_factory.mktemp("package")
    subprocess.run([helm, "package", chart, "--destination", folder], check=True, timeout=60)
    (package,) = folder.glob("*.tgz")
    return package


@pytest.fixture
def render(helm: str, chart: Path, tmp_path: Path) -> Render:
    def run(values: dict[str, Any] | None = None) -> list[Manifest]:
        file = tmp_path / "values.yaml"
        file.write_text(yaml.safe_dump(values or {}))
        done = subprocess.run(
            [helm, "template", "msc", chart, "--namespace", "system", "--values", file],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]

    return run

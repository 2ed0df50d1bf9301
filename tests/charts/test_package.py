from __future__ import annotations

import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.cluster


def test_the_package_renders_what_the_folder_renders(helm: str, chart: Path, package: Path) -> None:
    options = ["--set", "metrics.dashboards.enabled=true"]
    options += ["--set", "metrics.prometheusRule.enabled=true"]

    from_folder, from_package = (
        subprocess.check_output([helm, "template", "msc", source, *options], timeout=60)
        for source in (chart, package)
    )

    assert from_package == from_folder


def test_the_package_holds_everything_that_the_folder_holds(chart: Path, package: Path) -> None:
    with tarfile.open(package) as archive:
        packaged = {name.removeprefix("modelscaling/") for name in archive.getnames()}

    present = {str(file.relative_to(chart)) for file in chart.rglob("*") if file.is_file()}
    assert packaged == present

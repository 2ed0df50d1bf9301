from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml

from modelscaling.api.modelscaling import API_VERSION, KIND
from modelscaling.api.validation import parse_spec

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.cluster


def _notes(helm: str, chart: Path, *options: str) -> str:
    """What helm tells the person who installs the chart; no cluster is asked."""
    command = [helm, "install", "msc", str(chart), "--dry-run=client", "--namespace", "system"]
    output = subprocess.check_output([*command, *options], text=True, timeout=60)
    return output.partition("\nNOTES:\n")[2]


def test_the_first_run_that_the_notes_propose_is_valid(helm: str, chart: Path) -> None:
    match = re.search(r"<<END\n(.*?)\n  END", _notes(helm, chart), re.DOTALL)

    assert match
    run = yaml.safe_load(match[1])
    assert (run["apiVersion"], run["kind"]) == (API_VERSION, KIND)
    assert parse_spec(run["spec"]).replicas == 2


def test_the_notes_propose_a_namespace_that_is_watched(helm: str, chart: Path) -> None:
    notes = _notes(helm, chart, "--set", "watchNamespaces={research,production}")

    assert "runs the ModelScalings of research, production." in notes
    assert "kubectl apply --namespace research -f -" in notes


@pytest.mark.parametrize(
    ("repository", "is_warned"),
    [
        pytest.param("localhost/o", True, id="local"),
        pytest.param("r.example/o", False, id="pulled"),
    ],
)
def test_the_notes_warn_of_images_that_only_some_nodes_have(
    helm: str, chart: Path, repository: str, *, is_warned: bool
) -> None:
    images = f"image.repository={repository},trainer.image.repository={repository}"

    assert ("are only on nodes" in _notes(helm, chart, "--set", images)) is is_warned


def test_the_notes_say_that_the_definition_is_missing_if_it_is_not_installed(
    helm: str, chart: Path
) -> None:
    assert "crds.enabled is false" in _notes(helm, chart, "--set", "crds.enabled=false")

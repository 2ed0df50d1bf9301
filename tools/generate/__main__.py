"""`python -m tools.generate [--check]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from charts.dashboards.run import render as run_dashboard
from modelscaling.api.crd import render as modelscaling_crd
from tools.generate.artifact import Artifact
from tools.generate.conditions_reference import render as conditions_reference
from tools.generate.crd_reference import render as crd_reference
from tools.generate.metrics_reference import render as metrics_reference
from tools.generate.values_reference import render as values_reference

ROOT = Path(__file__).parents[2]

_CRD = "modelscaling.dev_modelscalings.yaml"

ARTIFACTS = (
    Artifact(path=f"crds/{_CRD}", render=modelscaling_crd),
    # Helm packages only what is inside the chart, and warns of every symbolic link.
    Artifact(path=f"charts/modelscaling/files/crds/{_CRD}", render=modelscaling_crd),
    Artifact(path="charts/modelscaling/files/dashboards/run.json", render=run_dashboard),
    Artifact(path="charts/modelscaling/README.md", render=values_reference),
    Artifact(path="docs/reference/conditions.md", render=conditions_reference),
    Artifact(path="docs/reference/crd.md", render=crd_reference),
    Artifact(path="docs/reference/metrics.md", render=metrics_reference),
)


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Write or check the generated files below `root`; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, tell what differs")
    if parser.parse_args(arguments).check:
        return _check(root)
    for artifact in ARTIFACTS:
        if artifact.write(root):
            sys.stdout.write(f"wrote {artifact.path}\n")
    return 0


def _check(root: Path) -> int:
    drifted = [artifact.path for artifact in ARTIFACTS if not artifact.is_current(root)]
    for path in drifted:
        sys.stderr.write(
            f"{path} is not what the source code generates; "
            f"run 'make generate' (python -m tools.generate) and commit it\n"
        )
    return 1 if drifted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

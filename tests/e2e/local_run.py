"""The same run on this machine, in one process that nobody disturbs."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import sysconfig
from typing import TYPE_CHECKING, Any

from modelscaling.api.modelscaling import API_VERSION, KIND

if TYPE_CHECKING:
    from pathlib import Path

_CORPUS_IN_PODS = "/opt/modelscaling/corpus"
_TIMEOUT_S = 240


def train_locally(spec: dict[str, Any], directory: Path) -> list[dict[str, Any]]:
    """Return what `modelscaling train --json` says of each step of a run on the same text."""
    spec = copy.deepcopy(spec)
    path = spec["data"]["text"]["path"]
    spec["data"]["text"]["path"] = path.replace(_CORPUS_IN_PODS, sysconfig.get_path("stdlib"))
    spec.pop("parallelism", None)
    resource = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "a"}, "spec": spec}
    file = directory / "run.yaml"
    file.write_text(json.dumps(resource))
    command = [sys.executable, "-m", "modelscaling.cli.main", "train", "-f", str(file)]
    lines = subprocess.run(
        [*command, "--processes", "1", "--json"],
        check=True,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ).stdout.splitlines()
    *steps, last = [json.loads(line) for line in lines]
    assert last["done"] is True
    return steps

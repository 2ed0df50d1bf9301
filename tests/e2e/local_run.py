"""The same run on this machine, in one process that nobody disturbs."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
import sysconfig
from typing import TYPE_CHECKING, Any

from modelscaling.api.modelscaling import API_VERSION, KIND

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_CORPUS_IN_PODS = "/opt/modelscaling/corpus"
_TIMEOUT_S = 240
_AT_ONCE = 1000


class Undisturbed:
    """The steps of a run that are the same however many follow, trained once they are asked for:
    most tests end long before their run would.
    """

    def __init__(self, spec: Callable[[int], dict[str, Any]], directory: Path) -> None:
        """Take the spec of so many steps, and where to write it."""
        self._spec = spec
        self._directory = directory
        self._steps: list[dict[str, Any]] = []

    def at(self, step: int) -> dict[str, Any]:
        """Return what is said of a step, counted from 1."""
        if step > len(self._steps):
            wanted = math.ceil(step / _AT_ONCE) * _AT_ONCE
            self._steps = train_locally(self._spec(wanted), self._directory)
        return self._steps[step - 1]


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

"""Time a run from `kubectl apply` to its first step in the status, on the cluster of `make demo`.

    make demo && python -m bench.start [--runs 6]

Two pods of a small model, with and without a checkpoint volume in turns. Between runs it waits
until the last one's pods are gone.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from demo.kubectl import Cluster
from modelscaling.api.modelscaling import API_VERSION, KIND

_NAMESPACE = "demo"
_NAME = "bench-start"
_TIMEOUT_S = 120
_POD_TEMPLATE = {
    "spec": {
        "containers": [{"name": "trainer", "env": [{"name": "OMP_NUM_THREADS", "value": "1"}]}]
    }
}
# The claim that examples/stdlib-3m.yaml makes.
_CHECKPOINT = {"volume": {"persistentVolumeClaim": {"claimName": "runs"}}}


def _run(*, saves: bool) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "model": {
            "layers": 2,
            "hiddenSize": 64,
            "heads": 4,
            "feedForwardSize": 128,
            "contextLength": 64,
        },
        "replicas": 2,
        "data": {"text": {"path": "/opt/modelscaling/corpus/*.py"}},
        "training": {"tokens": "1M", "globalBatchSize": 8},
        "template": _POD_TEMPLATE,
    }
    if saves:
        spec["checkpoint"] = _CHECKPOINT
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": _NAME}, "spec": spec}


def seconds_to_first_step(cluster: Cluster, *, saves: bool) -> float:
    """Apply a run, wait for its first step, and remove it with its pods."""
    here = f"--namespace={_NAMESPACE}"
    began = time.monotonic()
    cluster.run("kubectl", "apply", here, "--filename=-", stdin=json.dumps(_run(saves=saves)))
    for content in cluster.watch("modelscaling", _NAME, here, timeout_s=_TIMEOUT_S):
        if content.get("status", {}).get("progress", {}).get("step", 0) > 0:
            seconds = time.monotonic() - began
            break
    else:
        raise TimeoutError(f"{_NAME}: no step within {_TIMEOUT_S} s; see kubectl describe")
    cluster.run("kubectl", "delete", "modelscaling", _NAME, here, "--timeout=60s")
    pods = f"--selector=modelscaling.dev/name={_NAME}"
    cluster.run("kubectl", "wait", "--for=delete", "pods", pods, here, "--timeout=60s")
    return seconds


def main() -> None:
    """Measure and print one line of JSON for each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=6)
    arguments = parser.parse_args()
    cluster = Cluster.from_environment(Path(__file__).parent.parent)
    for number in range(arguments.runs):
        saves = bool(number % 2)
        seconds = seconds_to_first_step(cluster, saves=saves)
        print(json.dumps({"saves": saves, "seconds": round(seconds, 2)}), flush=True)


if __name__ == "__main__":
    main()

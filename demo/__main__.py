"""The demo: install the chart, train a model on the cluster, change it while it trains, show the
numbers.

`make demo` runs it. With KUBECONFIG set it uses that cluster (with the chart's values in the file
HELM_VALUES, and the Prometheus at PROMETHEUS_URL for the picture, if they are set); else the
devcluster, which `make demo` has started.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo.changes import changes_of, ledger
from demo.kubectl import Cluster, ToolError
from demo.picture import Period, draw

if TYPE_CHECKING:
    from collections.abc import Mapping

_ROOT = Path(__file__).parent.parent
_EXAMPLE = _ROOT / "examples/stdlib-3m.yaml"
_NAMESPACE = "demo"
_NAME = "stdlib-3m"
_RELEASE = "modelscaling"
_RELEASE_NAMESPACE = "modelscaling-system"
_LINE_S = 5
"""Seconds between two lines while the run only moves on."""
_DEADLINE_S = 1800
_PICTURE = _ROOT / ".demo/stdlib-3m.png"


def main() -> int:
    """Run the demo, or remove it (`down`); the exit code is 0 when the run is complete."""
    try:
        cluster = Cluster.from_environment(_ROOT)
        return _remove(cluster) if sys.argv[1:] == ["down"] else _show(cluster)
    except (ToolError, FileNotFoundError) as error:
        sys.stderr.write(f"demo: {error}\n")
        return 1


def _show(cluster: Cluster) -> int:
    _install(cluster)
    started = _apply(cluster)
    status = _watch(cluster, started)
    state = status.get("state")
    if state == "Complete" and cluster.prometheus:
        # One more scrape, so that the last step is in the picture.
        period = Period(start=started, end=time.time() + 1)
        rescales = status.get("rescales", [])
        draw(
            cluster.prometheus,
            namespace=_NAMESPACE,
            name=_NAME,
            period=period,
            rescales=rescales,
            file=_PICTURE,
        )
    sys.stdout.write(f"\nEvery change of the group, from status.rescales:\n{ledger(status)}\n")
    _say_where_to_look(cluster)
    return 0 if state == "Complete" else 1


def _remove(cluster: Cluster) -> int:
    """Remove what the demo made on a cluster of the user's."""
    cluster.run(
        "kubectl", "delete", "namespace", _NAMESPACE, "--ignore-not-found", "--timeout=180s"
    )
    cluster.run("helm", "uninstall", _RELEASE, "--namespace", _RELEASE_NAMESPACE, "--wait")
    cluster.run("kubectl", "delete", "namespace", _RELEASE_NAMESPACE, "--timeout=180s")
    return 0


def _install(cluster: Cluster) -> None:
    _say("helm: installing the operator")
    # On the devcluster nobody but this project can have left a definition there.
    ours = ["--values", str(_ROOT / "devcluster/values.yaml"), "--take-ownership"]
    theirs = ["--values", os.environ["HELM_VALUES"]] if "HELM_VALUES" in os.environ else []
    cluster.run(
        "helm",
        *("upgrade", "--install", _RELEASE, str(_ROOT / "charts/modelscaling")),
        *("--namespace", _RELEASE_NAMESPACE, "--create-namespace"),
        *(ours if cluster.binaries else theirs),
        *("--wait", "--timeout", "120s"),
    )


def _apply(cluster: Cluster) -> float:
    """Apply the example anew and return the time."""
    namespace = f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {_NAMESPACE}}}\n"
    cluster.run("kubectl", "apply", "--filename=-", stdin=namespace)
    cluster.run(
        "kubectl",
        *("delete", "modelscaling", _NAME, "--namespace", _NAMESPACE),
        *("--ignore-not-found", "--timeout=120s"),
    )
    _say(f"kubectl apply --namespace {_NAMESPACE} --filename {_EXAMPLE.relative_to(_ROOT)}")
    cluster.run("kubectl", "apply", "--namespace", _NAMESPACE, f"--filename={_EXAMPLE}")
    return time.time()


def _watch(cluster: Cluster, started: float) -> Mapping[str, Any]:
    """Print the run's course until it ends, change it on the way, and return its last status."""
    state, shown_at, first_step_shown = "Pending", 0.0, False
    status: Mapping[str, Any] = {}
    changes = list(changes_of(_NAME))
    objects = cluster.watch(
        "modelscaling", f"--namespace={_NAMESPACE}", name=_NAME, timeout_s=_DEADLINE_S
    )
    for content in objects:
        status = content.get("status", {})
        progress = status.get("progress", {})
        if progress.get("step") and not first_step_shown:
            first_step_shown = True
            _say(f"first step seen {time.time() - started:.1f} s after apply")
        before, state = state, str(status.get("state", "Pending"))
        if state != before or time.time() >= shown_at + _LINE_S:
            shown_at = time.time()
            _say(_course(state, progress))
        if state in {"Complete", "Failed"}:
            return status
        if changes and changes[0].is_due(status):
            arguments = changes.pop(0).arguments
            _say(f"kubectl {' '.join(arguments)}")
            cluster.run("kubectl", *arguments, f"--namespace={_NAMESPACE}")
    _say(f"the run did not end within {_DEADLINE_S} s")
    return status


def _course(state: str, progress: Mapping[str, Any]) -> str:
    return (
        f"{state:<10} step {progress.get('step', 0):>5}/{progress.get('totalSteps', '?')}"
        f"  loss {progress.get('loss', '-'):>7}"
        f"  tokens/s {progress.get('tokensPerSecond', '-'):>7}"
        f"  MFU {progress.get('mfuPercent', '-'):>5} %"
    )


def _say_where_to_look(cluster: Cluster) -> None:
    sys.stdout.write(cluster.run("kubectl", "get", "modelscalings", f"--namespace={_NAMESPACE}"))
    if cluster.binaries is None:
        return
    sys.stdout.write(
        f"\nLook around:\n"
        f"  export KUBECONFIG={cluster.kubeconfig} PATH={cluster.binaries}:$PATH\n"
        f"  kubectl --namespace {_NAMESPACE} describe modelscaling {_NAME}\n"
        f"  Prometheus: {cluster.prometheus}/graph?g0.expr=modelscaling_loss\n"
        f"  picture:    {_PICTURE}\n"
        f"Remove everything: make demo-down\n"
    )


def _say(line: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

"""Show what of the cluster runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from devcluster import node, processes
from devcluster.api import Api
from devcluster.removal import nodes_of

if TYPE_CHECKING:
    from devcluster.layout import Layout

_SHARED = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "coredns",
    "prometheus",
)
_RECENT = timedelta(seconds=6)


def status(layout: Layout) -> bool:
    """Print each program and node, and return whether all are well."""
    if not layout.state.exists():
        print("there is no cluster; `make cluster` starts one")
        return False
    nodes = nodes_of(layout)
    wanted = [*_SHARED, *(f"{p}@{n.name}" for n in nodes for p in ("containerd", "kubelet"))]
    running = processes.running(layout.home)
    for name in wanted:
        process = running.get(name)
        print(f"{name:<28}{f'process {process.pid}' if process else 'does not run'}")
    if "kube-apiserver" not in running:
        return False
    api = Api(layout)
    since = datetime.now(UTC) - _RECENT
    ready = {each.name: node.is_ready(api, each, since=since) for each in nodes}
    for name, is_ready in sorted(ready.items()):
        print(f"{name:<28}{'Ready' if is_ready else 'not Ready'}")
    return all(ready.values()) and all(name in running for name in wanted)

"""Start the cluster, or what is missing of it.

Every step looks first and does only what is missing, so that the same path serves a first start,
a start that was interrupted, processes that were killed and a cluster that runs.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from devcluster import (
    cgroups,
    changes,
    control_plane,
    image,
    mounts,
    network,
    node,
    pki,
    removal,
    volumes,
)
from devcluster.api import Api
from devcluster.build import ensure_binaries
from devcluster.files import write
from devcluster.layout import PROMETHEUS_PORT, Layout, Node
from devcluster.lock import locked
from devcluster.programs import await_ready, ensure
from devcluster.progress import say
from devcluster.prometheus import prometheus
from devcluster.requirements import check_machine
from devcluster.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

_DEFAULT_NODES = 3
_NODE_TIMEOUT_S = 60
# A kubelet renews its lease each second.
_RECENT = timedelta(seconds=6)


def up(layout: Layout, count: int | None = None) -> None:
    """Bring the cluster up with `count` nodes; without one with those it has, or three."""
    check_machine()
    with locked(layout):
        removal.take_over(layout)
        present = changes.load(layout)
        if present and (present.being_removed or not present.is_of_this_boot):
            say(
                "removing what is left of a cluster from before the machine was restarted or a "
                "removal that was interrupted"
            )
            removal.remove(layout)
        python = image.find_python(layout)
        image.check(python)
        cgroups.check()
        build = ensure_binaries(layout)
        if not layout.state.exists():
            network.check_ranges()
            network.check_forwarding_allowed()
            changes.note(layout)
        nodes = [Node(i) for i in range(count or len(removal.nodes_of(layout)) or _DEFAULT_NODES)]
        _prepare(layout, nodes)
        archive = layout.home / "images.tar"
        write(archive, image.archive(python))
        _start(layout, nodes, build, archive)


def _prepare(layout: Layout, nodes: list[Node]) -> None:
    """Make what the programs need: keys, addresses, bridges, mounts, cgroups."""
    pki.create(layout, nodes)
    network.create(nodes)
    for each in nodes:
        mounts.create(each)
        cgroups.create(each.cgroup)
        layout.node(each).mkdir(parents=True, exist_ok=True)


def _start(layout: Layout, nodes: list[Node], build: str, archive: Path) -> None:
    api = Api(layout)
    with ThreadPoolExecutor(len(nodes) + 2) as pool:
        # Containers' side and the control plane need nothing of each other.
        runtimes = [pool.submit(_start_runtime, layout, n, build, archive) for n in nodes]
        server = control_plane.api_server(layout, build, api)
        ensure(layout, control_plane.etcd(layout, build))
        ensure(layout, server)
        await_ready(layout, server)
        control_plane.grant(layout, api)
        dns = control_plane.coredns(layout, build)
        metrics = prometheus(layout, build)
        for program in (
            control_plane.controller_manager(layout, build),
            control_plane.scheduler(layout, build),
            dns,
            metrics,
        ):
            ensure(layout, program)
        for runtime in runtimes:
            runtime.result()
        removal.remove_other_nodes(layout, nodes, api)
        kubelets = [pool.submit(_start_kubelet, layout, n, build, api) for n in nodes]
        volumes.offer(layout, api)
        await_ready(layout, dns)
        await_ready(layout, metrics)
        for kubelet in kubelets:
            kubelet.result()
    # Last: who finds it finds a cluster that is ready.
    pki.write_admin_kubeconfig(layout)
    say(
        f"ready: {', '.join(each.name for each in nodes)}. Prometheus: "
        f"http://127.0.0.1:{PROMETHEUS_PORT}; to look around: "
        f"export KUBECONFIG={layout.kubeconfig} PATH={layout.bin}:$PATH"
    )


def _start_runtime(layout: Layout, each: Node, build: str, archive: Path) -> None:
    containerd = node.containerd(layout, each, build)
    ensure(layout, containerd)
    await_ready(layout, containerd)
    node.import_images(layout, each, archive)


def _start_kubelet(layout: Layout, each: Node, build: str, api: Api) -> None:
    now = datetime.now(UTC)
    is_new = ensure(layout, node.kubelet(layout, each, build))
    await_node(layout, each, api, since=now if is_new else now - _RECENT)


def await_node(layout: Layout, each: Node, api: Api, *, since: datetime) -> None:
    """Return when a node is Ready by what its kubelet has said after `since`."""
    wait_until(
        lambda: node.is_ready(api, each, since=since),
        what=f"readiness of {each.name}",
        timeout_s=_NODE_TIMEOUT_S,
        hint=lambda: f"See {layout.log}/kubelet@{each.name}.log",
    )

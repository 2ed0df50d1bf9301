"""Remove the cluster, and see to it that nothing is left."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from devcluster import cgroups, changes, mounts, network, processes
from devcluster.errors import ClusterError
from devcluster.layout import CGROUP, RUN_DIRECTORY, Layout, Node
from devcluster.lock import locked
from devcluster.progress import say
from devcluster.requirements import check_machine
from devcluster.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from devcluster.api import Api

_PROCESSES_TIMEOUT_S = 30


def down(layout: Layout, *, with_binaries: bool = False) -> None:
    """Remove the cluster; raise, naming it, when anything of it is left."""
    check_machine()
    with locked(layout):
        take_over(layout)
        remove(layout)
        left = leftovers(layout)
        if left:
            raise ClusterError(f"these are left, remove them by hand: {'; '.join(left)}")
        if with_binaries:
            shutil.rmtree(layout.home)
    say("nothing is left of the cluster" + ("" if with_binaries else f" but {layout.bin}"))


def take_over(layout: Layout) -> None:
    """Raise when a cluster of another checkout runs; remove it when that checkout is gone."""
    others = {p.home for p in processes.all_marked() if p.home != layout.home}
    for home in others:
        if home.exists():
            raise ClusterError(
                f"the devcluster of another checkout runs, in {home}; a machine has room for one: "
                f"run `make cluster-down` in {home.parent}, or use its cluster: "
                f"export KUBECONFIG={home / 'kubeconfig'}"
            )
        say(f"removing the devcluster of {home.parent}, which is not there any more")
        remove(Layout(home.parent))


def remove(layout: Layout) -> None:
    """Remove everything but what was built; safe to repeat, and at whatever point it stopped."""
    present = changes.load(layout)
    if present:
        changes.note_removal(layout, present)
    say("killing processes")
    # No graceful stop: the API server's takes a minute, and nothing here is kept.
    _kill_marked(layout)
    cgroups.kill(CGROUP)
    say("removing mounts, interfaces, addresses, cgroups and files")
    mounts.remove_below(RUN_DIRECTORY, layout.home)
    network.remove_all()
    cgroups.remove(CGROUP)
    if present:
        changes.revert(present)
    if RUN_DIRECTORY.exists():
        shutil.rmtree(RUN_DIRECTORY)
    # What was changed on the machine stays noted until all else is gone.
    for path in sorted(_files(layout), key=lambda p: p == layout.state):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def leftovers(layout: Layout) -> list[str]:
    """Return what is still there of a cluster."""
    marked = [p for p in processes.all_marked() if p.home == layout.home]
    return [
        *(f"process {process.pid} ({process.name})" for process in marked),
        *mounts.left(layout.home),
        *network.left(),
        *cgroups.left(),
        *(f"file {path}" for path in _files(layout)),
        *([f"directory {RUN_DIRECTORY}"] if RUN_DIRECTORY.exists() else []),
    ]


def nodes_of(layout: Layout) -> list[Node]:
    """Return the nodes that were started."""
    directory = layout.home / "nodes"
    return [Node.named(d.name) for d in directory.iterdir()] if directory.exists() else []


def remove_other_nodes(layout: Layout, wanted: list[Node], api: Api) -> None:
    """Remove the nodes that are there but not wanted."""
    for node in nodes_of(layout):
        if node in wanted:
            continue
        say(f"removing {node.name}")
        names = {f"kubelet@{node.name}", f"containerd@{node.name}"}
        processes.kill(
            p for p in processes.all_marked() if p.home == layout.home and p.name in names
        )
        cgroups.kill(node.cgroup)
        mounts.remove_below(node.run, layout.node(node))
        network.remove(node)
        cgroups.remove(node.cgroup)
        shutil.rmtree(node.run)
        shutil.rmtree(layout.node(node))
        api.delete(f"/api/v1/nodes/{node.name}")


def _kill_marked(layout: Layout) -> None:
    def none_is_left() -> bool:
        # Again, for what was forked between the look and the kill.
        marked = [p for p in processes.all_marked() if p.home == layout.home]
        processes.kill(marked)
        return not marked

    wait_until(
        none_is_left, what="the end of the cluster's processes", timeout_s=_PROCESSES_TIMEOUT_S
    )


def _files(layout: Layout) -> list[Path]:
    if not layout.home.exists():
        return []
    return [path for path in layout.home.iterdir() if path != layout.bin]

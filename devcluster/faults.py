"""What goes wrong with nodes, for tests: a node is lost, or its network."""

from __future__ import annotations

from datetime import UTC, datetime

from devcluster import cgroups, network, node, processes
from devcluster.api import Api
from devcluster.build import build_key
from devcluster.layout import Layout, Node
from devcluster.programs import ensure
from devcluster.up import await_node


def lose_node(name: str, layout: Layout | None = None) -> None:
    """Kill a node's kubelet and its containers, as when its machine is switched off.

    Kubernetes notices after 6.5 s. Its pods end without a word to anybody.
    """
    layout, lost = layout or Layout.here(), Node.named(name)
    kubelet = processes.running(layout.home).get(f"kubelet@{lost.name}")
    # The kubelet first, as it would start the containers again.
    processes.kill([kubelet] if kubelet else [])
    cgroups.kill(lost.cgroup)


def return_node(name: str, layout: Layout | None = None) -> None:
    """Start the kubelet of a lost node again and wait until the node is Ready."""
    layout, returned = layout or Layout.here(), Node.named(name)
    now = datetime.now(UTC)
    ensure(layout, node.kubelet(layout, returned, build_key(layout.sources)))
    await_node(layout, returned, Api(layout), since=now)


def cut_network(name: str) -> None:
    """Cut a node's pods off from everything, while its kubelet goes on: a partition."""
    network.set_bridge(Node.named(name), up=False)


def join_network(name: str) -> None:
    """Undo `cut_network`."""
    network.set_bridge(Node.named(name), up=True)


def cut_pair(address: str, other: str) -> None:
    """Keep two pods on different nodes from reaching each other; everybody else reaches both."""
    network.cut_pair(address, other)


def join_pair(address: str, other: str) -> None:
    """Undo `cut_pair`."""
    network.join_pair(address, other)

"""A real Kubernetes on one machine, for the demo and the tests.

It compiles the upstream programs from their Go modules and starts them with a configuration that
lets nothing listen beyond this machine. It is a tool of this project, not a way to run
Kubernetes: with `KUBECONFIG` set the project uses that cluster and needs none of this.

    python -m devcluster up | status | down
"""

from devcluster.errors import ClusterError
from devcluster.faults import (
    cut_network,
    cut_pair,
    join_network,
    join_pair,
    lose_node,
    return_node,
)
from devcluster.layout import Layout, Node

__all__ = [
    "ClusterError",
    "Layout",
    "Node",
    "cut_network",
    "cut_pair",
    "join_network",
    "join_pair",
    "lose_node",
    "return_node",
]

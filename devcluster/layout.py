"""Names, addresses and paths: everything that two parts of the devcluster must agree on.

All addresses are private ones on this machine's own interfaces. The range of the Services is
small because only two of them work: there is no kube-proxy, so the two addresses that pods need
are put on the loopback interface, and the nodes' addresses beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RUN_DIRECTORY = Path("/run/modelscaling-devcluster")
"""A tmpfs for each node is mounted below it. Short, as a socket's path has 107 bytes at most."""
CGROUP = "modelscaling-devcluster"
CLUSTER_DOMAIN = "cluster.local"

API_ADDRESS = "10.96.0.1"
API_PORT = 443
DNS_ADDRESS = "10.96.0.10"
DNS_READY_PORT = 8181
SERVICE_RANGE = "10.96.0.0/24"
NODE_RANGE = "10.96.1.0/24"
POD_RANGE = "10.244.0.0/16"
KUBELET_PORT = 10250
ETCD_CLIENT_PORT = 23790
ETCD_PEER_PORT = 23800
PROMETHEUS_PORT = 9090

MAX_NODES = 50


@dataclass(frozen=True, slots=True)
class Node:
    """A node: a kubelet and a containerd, with an address and a bridge of their own."""

    index: int

    def __post_init__(self) -> None:
        """Refuse an index that has no addresses."""
        if not 0 <= self.index < MAX_NODES:
            raise ValueError(f"node {self.index} does not exist; give 0 to {MAX_NODES - 1}")

    @classmethod
    def named(cls, name: str) -> Node:
        """Return the node that Kubernetes calls `name`."""
        prefix, _, index = name.partition("-")
        if prefix != "node" or not index.isdecimal():
            raise ValueError(
                f"{name!r} is not a node of the devcluster; they are node-0, node-1, …"
            )
        return cls(int(index))

    @property
    def name(self) -> str:
        """Its name in Kubernetes."""
        return f"node-{self.index}"

    @property
    def address(self) -> str:
        """Where its kubelet listens."""
        return f"10.96.1.{self.index + 1}"

    @property
    def bridge(self) -> str:
        """The interface that its pods are connected to."""
        return f"devcluster{self.index}"

    @property
    def pod_range(self) -> str:
        """The addresses of its pods."""
        return f"10.244.{self.index}.0/24"

    @property
    def gateway(self) -> str:
        """The bridge's own address, by which its pods reach everything else."""
        return f"10.244.{self.index}.1"

    @property
    def run(self) -> Path:
        """The tmpfs of its containerd."""
        return RUN_DIRECTORY / self.name

    @property
    def socket(self) -> Path:
        """The socket of its containerd."""
        return self.run / "containerd.sock"

    @property
    def cgroup(self) -> str:
        """The cgroup of its pods; without one for each node kubelets kill each other's pods."""
        return f"{CGROUP}/{self.name}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a checkout keeps its cluster."""

    root: Path

    @classmethod
    def here(cls) -> Layout:
        """Return the layout of the checkout that this file is in."""
        return cls(Path(__file__).resolve().parent.parent)

    @property
    def sources(self) -> Path:
        """The Go module."""
        return self.root / "devcluster"

    @property
    def environment(self) -> Path:
        """The project's virtual environment, which pods use as well."""
        return self.root / ".venv"

    @property
    def home(self) -> Path:
        """Everything that the cluster writes, save what is in `RUN_DIRECTORY`."""
        return self.root / ".cluster"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's access."""
        return self.home / "kubeconfig"

    @property
    def bin(self) -> Path:
        """What was built; `down` keeps it."""
        return self.home / "bin"

    @property
    def log(self) -> Path:
        """A log for each program."""
        return self.home / "log"

    @property
    def config(self) -> Path:
        """The programs' configuration files."""
        return self.home / "config"

    @property
    def pki(self) -> Path:
        """Keys and certificates."""
        return self.home / "pki"

    @property
    def data(self) -> Path:
        """What etcd and Prometheus store."""
        return self.home / "data"

    @property
    def volumes(self) -> Path:
        """The directories of the PersistentVolumes."""
        return self.home / "volumes"

    @property
    def state(self) -> Path:
        """What was changed on the machine (`changes.py`)."""
        return self.home / "changes.json"

    def node(self, node: Node) -> Path:
        """Return the directory of a node's kubelet."""
        return self.home / "nodes" / node.name

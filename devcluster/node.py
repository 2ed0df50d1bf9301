"""A node: its containerd, its kubelet, and the configuration of both."""

from __future__ import annotations

import hashlib
import json
import socket
from datetime import datetime
from typing import TYPE_CHECKING, Any

import yaml

from devcluster import pki
from devcluster.commands import output_of
from devcluster.files import write
from devcluster.image import SANDBOX_IMAGE
from devcluster.layout import CLUSTER_DOMAIN, DNS_ADDRESS, KUBELET_PORT
from devcluster.processes import Program

if TYPE_CHECKING:
    from pathlib import Path

    from devcluster.api import Api
    from devcluster.layout import Layout, Node

_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
# Of the snapshotters that are built in, only the overlay's code is used; the rest would log that
# this machine lacks what they need.
_UNUSED_PLUGINS = [
    "io.containerd.internal.v1.opt",
    "io.containerd.nri.v1.nri",
    *(
        f"io.containerd.snapshotter.v1.{name}"
        for name in ("blockfile", "btrfs", "devmapper", "erofs", "zfs")
    ),
]


def containerd(layout: Layout, node: Node, build: str) -> Program:
    """Return a node's containerd."""
    directory = layout.node(node)
    network = directory / "cni"
    write(network / "10-bridge.conflist", json.dumps(_network(node), indent=1))
    file = directory / "containerd.toml"
    write(file, _containerd_toml(layout, node, network))
    return Program(
        name=f"containerd@{node.name}",
        binaries=layout.bin,
        build=build,
        arguments=("--config", str(file)),
        inputs=(file,),
        is_ready=lambda: _accepts(node.socket),
    )


def kubelet(layout: Layout, node: Node, build: str) -> Program:
    """Return a node's kubelet, which lets in the API server and who RBAC allows, nobody else."""
    directory = layout.node(node)
    file = directory / "kubelet.yaml"
    write(file, yaml.safe_dump(_kubelet_configuration(layout, node), sort_keys=False))
    identity = pki.of_node(node)
    return Program(
        name=f"kubelet@{node.name}",
        binaries=layout.bin,
        build=build,
        arguments=(
            f"--config={file}",
            f"--kubeconfig={pki.kubeconfig(layout, identity)}",
            f"--root-dir={directory / 'kubelet'}",
            f"--cert-dir={directory / 'kubelet/pki'}",
            f"--hostname-override={node.name}",
            f"--node-ip={node.address}",
        ),
        inputs=(file, pki.certificate(layout, identity), pki.kubeconfig(layout, identity)),
        listens=((node.address, KUBELET_PORT),),
    )


def import_images(layout: Layout, node: Node, archive: Path) -> None:
    """Give a node's containerd the images, if it does not have these."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    # In the tmpfs: it vanishes with the images.
    done = node.run / "images.sha256"
    if done.exists() and done.read_text() == digest:
        return
    _ctr(layout, node, "images", "import", "--local", "--snapshotter", "hostroot", str(archive))
    write(done, digest)


def is_ready(api: Api, node: Node, *, since: datetime) -> bool:
    """Whether a node is Ready and its kubelet has said so after `since`."""
    content = api.get(f"/api/v1/nodes/{node.name}")
    conditions = content.get("status", {}).get("conditions", [])
    if not any(c["type"] == "Ready" and c["status"] == "True" for c in conditions):
        return False
    renewed = api.get(f"{_LEASES}/{node.name}").get("spec", {}).get("renewTime")
    return renewed is not None and datetime.fromisoformat(renewed) > since


def _accepts(path: Path) -> bool:
    """Whether somebody listens on a socket; its file alone can be of a process that was killed."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def _ctr(layout: Layout, node: Node, *arguments: str) -> str:
    return output_of(
        layout.bin / "ctr", "--address", node.socket, "--namespace", "k8s.io", *arguments
    )


def _network(node: Node) -> dict[str, Any]:
    return {
        "cniVersion": "1.0.0",
        "name": "devcluster",
        "plugins": [
            {
                "type": "bridge",
                "bridge": node.bridge,
                # `network.py` has made it, with the address: as a gateway of the plugin's making
                # it would also turn the machine into a router.
                "isGateway": False,
                "ipMasq": False,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(node.run / "ipam"),
                    "ranges": [[{"subnet": node.pod_range, "gateway": node.gateway}]],
                    "routes": [{"dst": "0.0.0.0/0", "gw": node.gateway}],
                },
            }
        ],
    }


def _containerd_toml(layout: Layout, node: Node, network: Path) -> str:
    # TOML's strings and lists of strings are JSON's.
    def text(value: Path | str | list[str]) -> str:
        return json.dumps(value if isinstance(value, list) else str(value))

    runtime = 'plugins."io.containerd.cri.v1.runtime"'
    images = 'plugins."io.containerd.cri.v1.images"'
    return f"""version = 3
root = {text(node.run / "root")}
state = {text(node.run / "state")}
disabled_plugins = {text(_UNUSED_PLUGINS)}

[grpc]
  address = {text(node.socket)}

[{images}]
  snapshotter = "hostroot"
[{images}.pinned_images]
  sandbox = {text(SANDBOX_IMAGE)}

[{runtime}]
  # A machine without CAP_SYS_RESOURCE refuses the lower scores that are asked for.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
[{runtime}.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  snapshotter = "hostroot"
[{runtime}.containerd.runtimes.runc.options]
  BinaryName = {text(layout.bin / "runc")}
  Root = {text(node.run / "runc")}
  SystemdCgroup = false
[{runtime}.cni]
  bin_dirs = {text([str(layout.bin)])}
  conf_dir = {text(network)}
"""


def _kubelet_configuration(layout: Layout, node: Node) -> dict[str, Any]:
    certificate = str(pki.certificate(layout, pki.of_node(node)))
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.address,
        "port": KUBELET_PORT,
        "readOnlyPort": 0,
        "healthzPort": 0,
        "tlsCertFile": certificate,
        "tlsPrivateKeyFile": certificate,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki.authority(layout))},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": f"unix://{node.socket}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.cgroup}",
        "clusterDomain": CLUSTER_DOMAIN,
        "clusterDNS": [DNS_ADDRESS],
        # Pods look for names in the cluster alone, not in the machine's own domains.
        "resolvConf": "",
        # Else it leaves chains behind that nothing here needs.
        "makeIPTablesUtilChains": False,
        # With the controller manager's grace period: a lost node is noticed within 6 s.
        "nodeStatusUpdateFrequency": "1s",
        "nodeLeaseDurationSeconds": 4,
        # The machine's disk and memory are shared with everything else on it.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi"},
        "podLogsDir": str(layout.node(node) / "logs"),
        "volumePluginDir": str(layout.home / "volume-plugins"),
    }

"""The running devcluster: whom it lets in, and that it comes back from what befalls it."""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import socket
import ssl
import stat
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from demo.kubectl import ToolError
from devcluster import (
    Layout,
    Node,
    cut_network,
    join_network,
    lose_node,
    ports,
    processes,
    return_node,
    volumes,
)
from devcluster.api import Api
from devcluster.layout import API_ADDRESS, ETCD_CLIENT_PORT, KUBELET_PORT
from devcluster.status import status
from devcluster.up import up
from devcluster.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo.kubectl import Cluster

pytestmark = pytest.mark.cluster

PRIVATE = [ipaddress.ip_network(r) for r in ("127.0.0.0/8", "10.96.0.0/24", "10.96.1.0/24")]
SERVER = "import http.server as h; h.test(h.SimpleHTTPRequestHandler, port=8000, bind='0.0.0.0')"
CLIENT = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=2).status)"


@pytest.fixture(scope="module")
def layout() -> Layout:
    layout = Layout.here()
    used = Path(os.environ.get("KUBECONFIG") or layout.kubeconfig)
    if used.resolve() != layout.kubeconfig.resolve():
        pytest.skip("KUBECONFIG is of another cluster, whose machines these tests cannot touch")
    return layout


def make_pod(name: str, node: str) -> dict[str, Any]:
    """A pod as the restricted Pod Security Standard demands it, which serves HTTP."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "peers"}},
        "spec": {
            "nodeName": node,
            "hostname": name,
            "subdomain": "peers",
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
                "fsGroup": 65532,
            },
            "containers": [
                {
                    "name": "main",
                    "image": "localhost/modelscaling-trainer:dev",
                    "command": ["python", "-c", SERVER],
                    "workingDir": "/opt/modelscaling/corpus",
                    "readinessProbe": {
                        "httpGet": {"path": "/ast.py", "port": 8000},
                        "periodSeconds": 1,
                    },
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                }
            ],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
        },
    }


PEERS: list[dict[str, Any]] = [
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "peers"},
        "spec": {"clusterIP": "None", "selector": {"app": "peers"}, "ports": [{"port": 8000}]},
    },
    {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data"},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    },
    make_pod("first", "node-0"),
    make_pod("second", "node-1"),
]


@pytest.fixture(scope="module")
def peers(layout: Layout, cluster: Cluster) -> Iterator[str]:
    """Two pods on two nodes; the namespace that they are in."""
    assert layout.kubeconfig.exists()
    with namespace_with_peers(cluster) as name:
        yield name


@contextmanager
def namespace_with_peers(cluster: Cluster) -> Iterator[str]:
    name = f"peers-{uuid.uuid4().hex[:8]}"
    content = json.dumps({"apiVersion": "v1", "kind": "List", "items": PEERS})
    cluster.run("kubectl", "create", "namespace", name)
    try:
        label = "pod-security.kubernetes.io/enforce=restricted"
        cluster.run("kubectl", "label", "namespace", name, label)
        cluster.run("kubectl", "apply", f"--namespace={name}", "--filename=-", stdin=content)
        wait_for_pods(cluster, name)
        yield name
    finally:
        # It takes ten seconds, which nobody has to wait for.
        cluster.run("kubectl", "delete", "namespace", name, "--wait=false")


def wait_for_pods(cluster: Cluster, namespace: str) -> None:
    cluster.run(
        "kubectl",
        *("wait", "--for=condition=Ready", "pod", "--all", f"--namespace={namespace}"),
        "--timeout=60s",
    )


def execute(cluster: Cluster, namespace: str, pod: str, *command: str) -> str:
    return cluster.run("kubectl", "exec", pod, f"--namespace={namespace}", "--", *command)


def wait_until_reached(cluster: Cluster, namespace: str, here: str, there: str) -> None:
    """Wait until a pod is served by another: DNS may hear of a pod after it is Ready."""

    def is_reached() -> bool:
        url = f"http://{there}.peers:8000/ast.py"
        try:
            return execute(cluster, namespace, here, "python", "-c", CLIENT, url).strip() == "200"
        except ToolError:
            return False

    wait_until(is_reached, what=f"an answer of {there} to {here}", timeout_s=10)


def restarts(cluster: Cluster, namespace: str) -> list[int]:
    listed = cluster.run("kubectl", "get", "pods", f"--namespace={namespace}", "--output=json")
    pods = json.loads(listed)["items"]
    return [int(pod["status"]["containerStatuses"][0]["restartCount"]) for pod in pods]


def node_condition(cluster: Cluster, name: str) -> str:
    conditions = cluster.get("node", name)["status"]["conditions"]
    return next(str(c["status"]) for c in conditions if c["type"] == "Ready")


def status_without_certificate(address: str, port: int, path: str) -> int:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection(address, port, timeout=5, context=context)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def test_nothing_listens_beyond_this_machine(layout: Layout) -> None:
    ours = {p.pid: p.name for p in processes.all_marked() if p.home == layout.home}
    listening = ports.of_processes(ours)

    beyond = [
        f"{ours[pid]} on {listener.protocol} {listener.address}:{listener.port}"
        for pid, listener in listening
        if not any(listener.address in network for network in PRIVATE)
    ]

    assert listening
    assert beyond == []


@pytest.mark.parametrize(
    ("address", "port", "path"),
    [
        pytest.param(API_ADDRESS, 443, "/api/v1/secrets", id="API server"),
        pytest.param(Node(0).address, KUBELET_PORT, "/pods", id="kubelet"),
    ],
)
def test_nobody_gets_in_without_a_certificate(
    layout: Layout, address: str, port: int, path: str
) -> None:
    assert layout.kubeconfig.exists()
    assert status_without_certificate(address, port, path) == http.client.UNAUTHORIZED


def test_etcd_refuses_who_has_no_certificate(layout: Layout) -> None:
    assert layout.kubeconfig.exists()
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
        status_without_certificate("127.0.0.1", ETCD_CLIENT_PORT, "/version")


def test_keys_can_be_read_by_their_owner_alone(layout: Layout) -> None:
    files = [layout.kubeconfig, *layout.pki.iterdir()]

    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_the_machine_is_no_router(layout: Layout) -> None:
    assert layout.kubeconfig.exists()
    outward = Path("/proc/sys/net/ipv4/conf")
    settings = {
        name: (outward / name / "forwarding").read_text().strip()
        for _, name in socket.if_nameindex()
    }
    if settings["lo"] == "1":
        pytest.skip("this machine was a router before")

    assert {name for name, value in settings.items() if value == "1"} == {
        name for name in settings if name.startswith("devcluster")
    }


def test_a_second_start_starts_nothing(layout: Layout) -> None:
    before = processes.running(layout.home)

    up(layout)

    assert processes.running(layout.home) == before
    assert status(layout)


def test_restricted_pods_on_two_nodes_reach_each_other_by_name(
    cluster: Cluster, peers: str
) -> None:
    for here, there in (("first", "second"), ("second", "first")):
        wait_until_reached(cluster, peers, here, there)
    assert "GET /ast.py" in cluster.run("kubectl", "logs", "first", f"--namespace={peers}")


def test_a_pod_is_not_root_and_its_root_is_read_only(cluster: Cluster, peers: str) -> None:
    code = "import os, sys; print(os.getuid(), os.access('/', os.W_OK), sys.prefix)"

    said = execute(cluster, peers, "first", "python", "-c", code).split()

    assert said == ["65532", "False", str(Layout.here().environment)]


def test_a_volume_is_shared_by_nodes_and_emptied_when_its_claim_is_gone(
    layout: Layout, cluster: Cluster
) -> None:
    with namespace_with_peers(cluster) as name:
        execute(cluster, name, "first", "sh", "-c", "echo kept > /data/file")
        seen = execute(cluster, name, "second", "cat", "/data/file")
        volume = cluster.get("pvc", "data", f"--namespace={name}")["spec"]["volumeName"]
    wait_until(
        lambda: cluster.get("pv", volume)["status"]["phase"] == "Released",
        what="release of the volume",
        timeout_s=60,
    )
    volumes.offer(layout, Api(layout))

    assert seen == "kept\n"
    assert list((layout.volumes / volume).iterdir()) == []
    assert cluster.get("pv", volume)["status"].get("phase") in {None, "Pending", "Available"}


@pytest.mark.parametrize(
    "killed",
    [
        pytest.param(["kube-apiserver"], id="API server"),
        pytest.param(["etcd", "kube-apiserver", "kubelet@node-1"], id="half of it"),
        pytest.param(["containerd@node-0", "coredns", "prometheus"], id="the other half"),
    ],
)
def test_what_was_killed_is_started_again_and_pods_live_on(
    layout: Layout, cluster: Cluster, peers: str, killed: list[str]
) -> None:
    before, restarts_before = processes.running(layout.home), restarts(cluster, peers)
    processes.kill([before[name] for name in killed])

    up(layout)
    after = processes.running(layout.home)

    assert {name for name in before if before[name] != after[name]} == set(killed)
    wait_until_reached(cluster, peers, "first", "second")
    assert restarts(cluster, peers) == restarts_before


def test_a_lost_node_is_noticed_and_comes_back(cluster: Cluster, peers: str) -> None:
    lose_node("node-1")
    try:
        wait_until(
            lambda: node_condition(cluster, "node-1") == "Unknown",
            what="notice of the loss",
            timeout_s=30,
        )
    finally:
        return_node("node-1")

    wait_for_pods(cluster, peers)
    assert node_condition(cluster, "node-1") == "True"


def test_a_cut_network_parts_the_pods_and_leaves_the_node_ready(
    cluster: Cluster, peers: str
) -> None:
    address = cluster.get("pod", "second", f"--namespace={peers}")["status"]["podIP"]
    began = time.monotonic()
    cut_network("node-1")
    try:
        with pytest.raises(OSError, match=r"timed out|unreachable|No route"):
            socket.create_connection((address, 8000), timeout=1)
        ready = node_condition(cluster, "node-1")
    finally:
        join_network("node-1")

    assert ready == "True"
    assert time.monotonic() - began < 10
    socket.create_connection((address, 8000), timeout=5).close()

"""The programs that are one for the whole cluster, and how they are started."""

from __future__ import annotations

import urllib.request
from http import HTTPStatus
from typing import TYPE_CHECKING

import yaml

from devcluster import pki
from devcluster.files import write
from devcluster.layout import (
    API_ADDRESS,
    API_PORT,
    CLUSTER_DOMAIN,
    DNS_ADDRESS,
    DNS_READY_PORT,
    ETCD_CLIENT_PORT,
    ETCD_PEER_PORT,
    SERVICE_RANGE,
)
from devcluster.processes import Program

if TYPE_CHECKING:
    from devcluster.api import Api
    from devcluster.layout import Layout

_LOOPBACK = "127.0.0.1"
_ANSWER_TIMEOUT_S = 2
_BINDINGS = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
_ROLES = "/apis/rbac.authorization.k8s.io/v1/clusterroles"


def etcd(layout: Layout, build: str) -> Program:
    """Return etcd; only who has a certificate of the cluster's authority is let in."""
    certificate = pki.certificate(layout, pki.ETCD)
    peer = f"https://{_LOOPBACK}:{ETCD_PEER_PORT}"
    client = f"https://{_LOOPBACK}:{ETCD_CLIENT_PORT}"
    return Program(
        name="etcd",
        binaries=layout.bin,
        build=build,
        arguments=(
            f"--data-dir={layout.data / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--cert-file={certificate}",
            f"--key-file={certificate}",
            "--client-cert-auth",
            f"--trusted-ca-file={pki.authority(layout)}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            f"--peer-cert-file={certificate}",
            f"--peer-key-file={certificate}",
            "--peer-client-cert-auth",
            f"--peer-trusted-ca-file={pki.authority(layout)}",
            # It outlives SIGKILL; a machine that was switched off gets a new cluster anyway.
            "--unsafe-no-fsync",
        ),
        inputs=(certificate,),
        listens=((_LOOPBACK, ETCD_CLIENT_PORT), (_LOOPBACK, ETCD_PEER_PORT)),
    )


def api_server(layout: Layout, build: str, api: Api) -> Program:
    """Return the API server, on the address of its own Service."""
    certificate = pki.certificate(layout, pki.API_SERVER)
    etcd_client = pki.certificate(layout, pki.ETCD_CLIENT)
    kubelet_client = pki.certificate(layout, pki.KUBELET_CLIENT)
    key = pki.service_account_key(layout)
    return Program(
        name="kube-apiserver",
        binaries=layout.bin,
        build=build,
        arguments=(
            f"--bind-address={API_ADDRESS}",
            f"--secure-port={API_PORT}",
            f"--advertise-address={API_ADDRESS}",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={certificate}",
            f"--client-ca-file={pki.authority(layout)}",
            "--anonymous-auth=false",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--etcd-servers=https://{_LOOPBACK}:{ETCD_CLIENT_PORT}",
            f"--etcd-cafile={pki.authority(layout)}",
            f"--etcd-certfile={etcd_client}",
            f"--etcd-keyfile={etcd_client}",
            f"--kubelet-certificate-authority={pki.authority(layout)}",
            f"--kubelet-client-certificate={kubelet_client}",
            f"--kubelet-client-key={kubelet_client}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--profiling=false",
        ),
        inputs=(certificate, etcd_client, kubelet_client, key),
        listens=((API_ADDRESS, API_PORT),),
        is_ready=api.is_ready,
    )


def controller_manager(layout: Layout, build: str) -> Program:
    """Return the controller manager; it notices a lost node after seconds, as tests wait for it."""
    kubeconfig = pki.kubeconfig(layout, pki.CONTROLLER_MANAGER)
    return Program(
        name="kube-controller-manager",
        binaries=layout.bin,
        build=build,
        arguments=(
            f"--kubeconfig={kubeconfig}",
            f"--service-account-private-key-file={pki.service_account_key(layout)}",
            f"--root-ca-file={pki.authority(layout)}",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--node-monitor-period=1s",
            "--node-monitor-grace-period=6s",
            "--secure-port=0",
            # Made by it at once; by default in /usr/libexec.
            f"--flex-volume-plugin-dir={layout.home / 'volume-plugins'}",
        ),
        inputs=(kubeconfig, pki.service_account_key(layout)),
    )


def scheduler(layout: Layout, build: str) -> Program:
    """Return the scheduler."""
    kubeconfig = pki.kubeconfig(layout, pki.SCHEDULER)
    return Program(
        name="kube-scheduler",
        binaries=layout.bin,
        build=build,
        arguments=(f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--secure-port=0"),
        inputs=(kubeconfig,),
    )


def coredns(layout: Layout, build: str) -> Program:
    """Return CoreDNS, which knows the cluster's names and refuses all others."""
    corefile = layout.config / "Corefile"
    write(corefile, _corefile(layout))
    return Program(
        name="coredns",
        binaries=layout.bin,
        build=build,
        arguments=("-conf", str(corefile)),
        inputs=(corefile, pki.kubeconfig(layout, pki.COREDNS)),
        listens=((DNS_ADDRESS, 53), (DNS_ADDRESS, DNS_READY_PORT)),
        is_ready=lambda: answers(f"http://{DNS_ADDRESS}:{DNS_READY_PORT}/ready"),
    )


def _corefile(layout: Layout) -> str:
    # A pod's name must be gone, and a new one known, within a second of the change.
    return f""".:53 {{
    bind {DNS_ADDRESS}
    errors
    ready {DNS_ADDRESS}:{DNS_READY_PORT}
    cache 1
    kubernetes {CLUSTER_DOMAIN} {{
        kubeconfig "{pki.kubeconfig(layout, pki.COREDNS)}" devcluster
        ttl 0
    }}
}}
"""


def grant(layout: Layout, api: Api) -> None:
    """Let CoreDNS, Prometheus and the API server do what their users are for (rbac.yaml)."""
    text = (layout.sources / "rbac.yaml").read_text()
    for content in yaml.safe_load_all(text):
        api.apply(_ROLES if content["kind"] == "ClusterRole" else _BINDINGS, content)


def answers(url: str) -> bool:
    """Whether an HTTP server of the cluster answers with success."""
    # Never through a proxy of the caller's environment: it cannot know these addresses.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_ANSWER_TIMEOUT_S) as answer:
            return bool(answer.status == HTTPStatus.OK)
    except OSError:
        return False

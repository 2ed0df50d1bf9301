"""The certificate authority of the cluster, the certificates, and kubeconfigs made of them.

A certificate and its key share a file, readable by its owner alone, so that there is never one
without the other. All are made when the cluster is, and vanish with it.
"""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from devcluster.files import write
from devcluster.layout import API_ADDRESS, API_PORT, CLUSTER_DOMAIN, Layout, Node

if TYPE_CHECKING:
    from pathlib import Path

# Longer than a machine stays on: a cluster that was switched off is made anew.
_VALIDITY = dt.timedelta(days=3650)
_CLOCK_SKEW = dt.timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a certificate is for: the user and the group in Kubernetes, and the server's names."""

    file: str
    user: str
    group: str = ""
    names: tuple[str, ...] = ()


ADMIN = Identity(file="admin", user="devcluster:admin", group="system:masters")
ETCD = Identity(file="etcd", user="etcd", names=("127.0.0.1", "localhost"))
ETCD_CLIENT = Identity(file="etcd-client", user="kube-apiserver")
API_SERVER = Identity(
    file="kube-apiserver",
    user="kube-apiserver",
    names=(
        API_ADDRESS,
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        f"kubernetes.default.svc.{CLUSTER_DOMAIN}",
    ),
)
KUBELET_CLIENT = Identity(file="kubelet-client", user="devcluster:kubelet-client")
CONTROLLER_MANAGER = Identity(file="kube-controller-manager", user="system:kube-controller-manager")
SCHEDULER = Identity(file="kube-scheduler", user="system:kube-scheduler")
COREDNS = Identity(file="coredns", user="devcluster:coredns")
PROMETHEUS = Identity(file="prometheus", user="devcluster:prometheus")

_IDENTITIES = (
    ADMIN,
    ETCD,
    ETCD_CLIENT,
    API_SERVER,
    KUBELET_CLIENT,
    CONTROLLER_MANAGER,
    SCHEDULER,
    COREDNS,
    PROMETHEUS,
)
_WITH_KUBECONFIG = (CONTROLLER_MANAGER, SCHEDULER, COREDNS, PROMETHEUS)


def of_node(node: Node) -> Identity:
    """Return the identity of a node's kubelet, as client and as server."""
    return Identity(
        file=node.name,
        user=f"system:node:{node.name}",
        group="system:nodes",
        names=(node.address, node.name),
    )


def authority(layout: Layout) -> Path:
    """Return the file of the certificate authority's certificate."""
    return layout.pki / "ca.crt"


def service_account_key(layout: Layout) -> Path:
    """Return the key that tokens of service accounts are signed with."""
    return layout.pki / "service-accounts.key"


def certificate(layout: Layout, identity: Identity) -> Path:
    """Return the file with an identity's certificate and key."""
    return layout.pki / f"{identity.file}.pem"


def kubeconfig(layout: Layout, identity: Identity) -> Path:
    """Return the file of an identity's access to the API server."""
    return layout.pki / f"{identity.file}.kubeconfig"


def create(layout: Layout, nodes: list[Node]) -> None:
    """Make what is missing of the cluster's keys, certificates and kubeconfigs."""
    layout.pki.mkdir(parents=True, exist_ok=True, mode=0o700)
    pair = layout.pki / "ca.pem"
    if not pair.exists():
        write(pair, _new_authority())
    content = pair.read_bytes()
    signer = serialization.load_pem_private_key(content, None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    issuer = x509.load_pem_x509_certificate(content)
    write(authority(layout), issuer.public_bytes(serialization.Encoding.PEM))
    if not service_account_key(layout).exists():
        write(service_account_key(layout), _pem(ec.generate_private_key(ec.SECP256R1())))
    of_nodes = [of_node(node) for node in nodes]
    for identity in (*_IDENTITIES, *of_nodes):
        if not certificate(layout, identity).exists():
            write(certificate(layout, identity), _issue(identity, issuer, signer))
    for identity in (*_WITH_KUBECONFIG, *of_nodes):
        write(kubeconfig(layout, identity), _kubeconfig_text(layout, identity))


def write_admin_kubeconfig(layout: Layout) -> None:
    """Write the kubeconfig for people; done last, as its presence says that there is a cluster."""
    write(layout.kubeconfig, _kubeconfig_text(layout, ADMIN))


def _new_authority() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("devcluster")
    built = (
        _builder(name, name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=True,
                crl_sign=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return built.public_bytes(serialization.Encoding.PEM) + _pem(key)


def _issue(
    identity: Identity, issuer: x509.Certificate, signer: ec.EllipticCurvePrivateKey
) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    built = _builder(_name(identity.user, identity.group), issuer.subject, key).add_extension(
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
        critical=False,
    )
    built = built.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
    )
    if identity.names:
        names = [_general_name(name) for name in identity.names]
        built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
    signed = built.sign(signer, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM) + _pem(key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + _VALIDITY)
    )


def _name(user: str, group: str = "") -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, user)]
    if group:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
    return x509.Name(attributes)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def _kubeconfig_text(layout: Layout, identity: Identity) -> str:
    pair = certificate(layout, identity).read_bytes()
    cut = pair.index(b"-----BEGIN EC PRIVATE KEY-----")
    cluster = {
        "server": f"https://{API_ADDRESS}:{API_PORT}",
        "certificate-authority-data": _base64(authority(layout).read_bytes()),
    }
    user = {
        "client-certificate-data": _base64(pair[:cut]),
        "client-key-data": _base64(pair[cut:]),
    }
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "devcluster", "cluster": cluster}],
        "users": [{"name": identity.file, "user": user}],
        "contexts": [
            {"name": "devcluster", "context": {"cluster": "devcluster", "user": identity.file}}
        ],
        "current-context": "devcluster",
    }
    return yaml.safe_dump(content, sort_keys=False)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()

from __future__ import annotations

import base64
import ssl
import stat
from typing import TYPE_CHECKING

import yaml
from cryptography import x509

from devcluster import pki
from devcluster.layout import Layout, Node

if TYPE_CHECKING:
    from pathlib import Path


def test_certificates_are_of_the_authority_and_name_user_group_and_address(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    pki.create(layout, [Node(1)])
    authority = x509.load_pem_x509_certificate(pki.authority(layout).read_bytes())
    content = pki.certificate(layout, pki.of_node(Node(1))).read_bytes()
    certificate = x509.load_pem_x509_certificate(content)

    certificate.verify_directly_issued_by(authority)

    assert certificate.subject.rfc4514_string() == "O=system:nodes,CN=system:node:node-1"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["10.96.1.2"]


def test_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    pki.create(layout, [Node(0)])
    pki.write_admin_kubeconfig(layout)

    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in (*layout.pki.iterdir(), layout.kubeconfig)
    }

    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(layout.pki.stat().st_mode) == 0o700


def test_a_second_start_keeps_keys_and_adds_what_a_new_node_needs(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    pki.create(layout, [Node(0)])
    before = {path: path.read_bytes() for path in layout.pki.iterdir()}

    pki.create(layout, [Node(0), Node(1)])

    assert {path: path.read_bytes() for path in before} == before
    assert pki.kubeconfig(layout, pki.of_node(Node(1))).exists()


def test_the_kubeconfig_verifies_the_server_and_carries_a_usable_key(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    pki.create(layout, [])
    pki.write_admin_kubeconfig(layout)
    content = yaml.safe_load(layout.kubeconfig.read_text())
    cluster = content["clusters"][0]["cluster"]
    user = content["users"][0]["user"]
    pair = tmp_path / "pair.pem"
    pair.write_bytes(
        base64.b64decode(user["client-certificate-data"])
        + base64.b64decode(user["client-key-data"])
    )

    context = ssl.create_default_context(
        cadata=base64.b64decode(cluster["certificate-authority-data"]).decode()
    )
    context.load_cert_chain(pair)

    assert cluster["server"] == "https://10.96.0.1:443"
    assert "insecure-skip-tls-verify" not in cluster

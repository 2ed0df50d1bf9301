"""How each program is started: above all, whom it lets in."""

from __future__ import annotations

import ipaddress
import tomllib
from typing import TYPE_CHECKING

import pytest
import yaml

from devcluster import control_plane, node, pki
from devcluster.api import Api
from devcluster.layout import Layout, Node
from devcluster.prometheus import configuration, prometheus

if TYPE_CHECKING:
    from pathlib import Path

    from devcluster.processes import Program


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    pki.create(layout, [Node(0), Node(1)])
    return layout


def all_programs(layout: Layout) -> list[Program]:
    return [
        control_plane.etcd(layout, "b"),
        control_plane.api_server(layout, "b", Api(layout)),
        control_plane.controller_manager(layout, "b"),
        control_plane.scheduler(layout, "b"),
        control_plane.coredns(layout, "b"),
        prometheus(layout, "b"),
        *(node.containerd(layout, Node(i), "b") for i in (0, 1)),
        *(node.kubelet(layout, Node(i), "b") for i in (0, 1)),
    ]


def test_no_program_listens_on_every_address(layout: Layout) -> None:
    for program in all_programs(layout):
        for address, _ in program.listens:
            assert ipaddress.ip_address(address).is_private
        assert not any("0.0.0.0" in argument for argument in program.arguments)


def test_no_two_programs_need_the_same_port(layout: Layout) -> None:
    wanted = [place for program in all_programs(layout) for place in program.listens]

    assert len(wanted) == len(set(wanted))


def test_no_key_or_token_is_on_a_command_line(layout: Layout) -> None:
    for program in all_programs(layout):
        assert not any("PRIVATE" in word or "token=" in word for word in program.argv)


def test_kubelets_let_nobody_in_without_a_certificate_or_a_token(layout: Layout) -> None:
    node.kubelet(layout, Node(1), "b")
    content = yaml.safe_load((layout.node(Node(1)) / "kubelet.yaml").read_text())

    assert content["authentication"]["anonymous"] == {"enabled": False}
    assert content["authorization"] == {"mode": "Webhook"}
    assert content["address"] == "10.96.1.2"
    assert (content["readOnlyPort"], content["healthzPort"]) == (0, 0)


def test_each_containerd_has_directories_of_its_own(layout: Layout) -> None:
    contents = []
    for index in (0, 1):
        node.containerd(layout, Node(index), "b")
        file = layout.node(Node(index)) / "containerd.toml"
        contents.append(tomllib.loads(file.read_text()))

    for key in ("root", "state"):
        assert contents[0][key] != contents[1][key]
    assert contents[0]["grpc"]["address"] != contents[1]["grpc"]["address"]


def test_prometheus_keeps_running_pods_of_modelscaling_with_their_own_labels(
    tmp_path: Path,
) -> None:
    content = configuration(rules=tmp_path / "*.yaml", kubeconfig=tmp_path / "kubeconfig")
    (scrape,) = content["scrape_configs"]
    (discovery,) = scrape["kubernetes_sd_configs"]
    kept = {
        rule["source_labels"][0]: rule["regex"]
        for rule in scrape["relabel_configs"]
        if rule["action"] == "keep"
    }

    assert scrape["honor_labels"] is True
    assert content["global"]["scrape_interval"] == "1s"
    assert discovery["selectors"][0]["label"] == "app.kubernetes.io/part-of=modelscaling"
    assert kept == {
        "__meta_kubernetes_pod_container_port_name": "metrics",
        "__meta_kubernetes_pod_phase": "Running",
    }

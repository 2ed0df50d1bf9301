from __future__ import annotations

import pytest

from devcluster.layout import Node
from devcluster.network import addresses, conflicts


@pytest.mark.parametrize(
    ("route", "found"),
    [
        pytest.param({"dst": "default", "dev": "eth0"}, [], id="default"),
        pytest.param({"dst": "10.96.0.1", "dev": "lo"}, [], id="our address"),
        pytest.param({"dst": "10.244.1.0/24", "dev": "devcluster1"}, [], id="our bridge"),
        pytest.param({"type": "unreachable", "dst": "10.244.0.0/16"}, [], id="our own guard"),
        pytest.param({"dst": "10.0.0.0/8", "dev": "tun0"}, [], id="a wider range loses to ours"),
        pytest.param({"dst": "192.0.2.0/24", "dev": "eth0"}, [], id="elsewhere"),
        pytest.param(
            {"dst": "10.244.3.0/24", "dev": "cni0"}, ["10.244.3.0/24 on cni0"], id="other pods"
        ),
        pytest.param(
            {"dst": "10.96.0.1", "dev": "kube-ipvs0"}, ["10.96.0.1/32 on kube-ipvs0"], id="service"
        ),
        pytest.param(
            {"type": "blackhole", "dst": "10.244.3.0/26"},
            ["10.244.3.0/26 on blackhole"],
            id="no device",
        ),
    ],
)
def test_routes_of_others_into_our_ranges_are_conflicts(
    route: dict[str, str], found: list[str]
) -> None:
    assert conflicts([route]) == found


def test_each_node_has_an_address_of_its_own() -> None:
    nodes = [Node(0), Node(49)]

    assert addresses(nodes) == ["10.96.0.1", "10.96.0.10", "10.96.1.1", "10.96.1.50"]

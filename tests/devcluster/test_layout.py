from __future__ import annotations

import pytest

from devcluster.layout import MAX_NODES, Node


def test_a_node_is_found_by_its_name() -> None:
    assert Node.named("node-12") == Node(12)


@pytest.mark.parametrize("name", ["node", "node-", "node-x", "worker-1", f"node-{MAX_NODES}"])
def test_a_name_of_no_node_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="node"):
        Node.named(name)


def test_a_socket_path_fits_into_the_kernels_limit() -> None:
    longest = f"{Node(MAX_NODES - 1).socket}.ttrpc"

    assert len(longest) < 108


def test_a_bridge_name_fits_into_the_kernels_limit() -> None:
    assert len(Node(MAX_NODES - 1).bridge) <= 15

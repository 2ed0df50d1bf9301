"""The addresses on the loopback interface and a bridge for each node.

Nothing on the network can reach a pod: a packet is forwarded when the interface that it came in by
allows it, and only the bridges do. `net.ipv4.ip_forward`, which would turn the machine into a
router, stays as it is. And nothing that is meant for the cluster leaves the machine: what no bridge
and no address takes is unreachable, and does not go out by the default route.
"""

from __future__ import annotations

import ipaddress
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devcluster.commands import output_of
from devcluster.errors import ClusterError
from devcluster.layout import (
    API_ADDRESS,
    DNS_ADDRESS,
    NODE_RANGE,
    POD_RANGE,
    SERVICE_RANGE,
    Node,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

_LOOPBACK = "lo"
_BRIDGE_PREFIX = "devcluster"
_BRIDGE = re.compile(rf"{_BRIDGE_PREFIX}\d+")
_GUARD = "unreachable"
"""The type of the routes that keep the cluster's traffic on the machine."""
_CUT = "blackhole"
"""The type of the rules that keep two pods from each other."""
_CUT_PRIORITY = "100"
"""Before the rule that looks the route up."""
_OURS = [ipaddress.IPv4Network(r) for r in (SERVICE_RANGE, NODE_RANGE, POD_RANGE)]


def addresses(nodes: Iterable[Node]) -> list[str]:
    """Return the addresses that must be on the loopback interface."""
    return [API_ADDRESS, DNS_ADDRESS, *(node.address for node in nodes)]


def create(nodes: Iterable[Node]) -> None:
    """Add the addresses and the bridges that are missing, and bring the bridges up."""
    nodes = list(nodes)
    present = set(_own_addresses())
    for address in addresses(nodes):
        if address not in present:
            output_of("ip", "address", "add", f"{address}/32", "dev", _LOOPBACK)
    for unguarded in {str(ours) for ours in _OURS} - set(_guarded_ranges()):
        output_of("ip", "route", "add", _GUARD, unguarded)
    links = {link["ifname"]: link for link in _links()}
    for node in nodes:
        if node.bridge not in links:
            _create_bridge(node)
        elif "UP" not in links[node.bridge]["flags"]:
            set_bridge(node, up=True)
        Path(f"/proc/sys/net/ipv4/conf/{node.bridge}/forwarding").write_text("1")


def set_bridge(node: Node, *, up: bool) -> None:
    """Take a node's bridge up or down; while it is down its pods reach nobody."""
    output_of("ip", "link", "set", "dev", node.bridge, "up" if up else "down")


def cut_pair(address: str, other: str) -> None:
    """Drop what two pods on different nodes send to each other, without a word to them."""
    for rule in (_cut(address, other), _cut(other, address)):
        output_of("ip", "rule", "add", *rule)


def join_pair(address: str, other: str) -> None:
    """Undo `cut_pair`."""
    for rule in (_cut(address, other), _cut(other, address)):
        output_of("ip", "rule", "delete", *rule)


def remove(node: Node) -> None:
    """Remove a node's bridge with what is connected to it, and its address."""
    for link in _links():
        # A pod's end of a veth pair vanishes with its namespace, which can take a while.
        if link.get("master") == node.bridge:
            output_of("ip", "link", "delete", "dev", link["ifname"])
    if any(link["ifname"] == node.bridge for link in _links()):
        output_of("ip", "link", "delete", "dev", node.bridge)
    _remove_addresses([node.address])


def remove_all() -> None:
    """Remove every bridge and address of any devcluster."""
    for index in {int(name.removeprefix(_BRIDGE_PREFIX)) for name in _bridges()}:
        remove(Node(index))
    _remove_addresses(_own_addresses())
    for guarded in _guarded_ranges():
        output_of("ip", "route", "delete", _GUARD, guarded)
    for source, destination in _cuts():
        output_of("ip", "rule", "delete", *_cut(source, destination))


def left() -> list[str]:
    """Return what is still there of a devcluster's network."""
    return [
        *(f"interface {name}" for name in _bridges()),
        *(f"address {address} on {_LOOPBACK}" for address in _own_addresses()),
        *(f"route to {guarded}" for guarded in _guarded_ranges()),
        *(f"rule from {source} to {destination}" for source, destination in _cuts()),
    ]


def check_ranges() -> None:
    """Raise when somebody else has the addresses that the cluster needs."""
    routes = json.loads(output_of("ip", "-json", "-4", "route", "show", "table", "all"))
    taken = conflicts(routes)
    if taken:
        raise ClusterError(
            f"the devcluster needs {SERVICE_RANGE}, {NODE_RANGE} and {POD_RANGE}, but this machine "
            f"has {', '.join(taken)}. Another Kubernetes or a VPN? Stop it, or use that cluster "
            f"with KUBECONFIG"
        )


def conflicts(routes: list[dict[str, Any]]) -> list[str]:
    """Return the routes, of those that `ip route` shows, into our ranges that are not ours.

    A route to more than a range of ours does no harm: the more exact one, ours, wins.
    """
    found = []
    for route in routes:
        device = route.get("dev", "")
        if _is_guard(route):
            continue
        if route["dst"] == "default" or device == _LOOPBACK or device.startswith(_BRIDGE_PREFIX):
            continue
        target = ipaddress.IPv4Network(route["dst"], strict=False)
        if any(target.subnet_of(ours) for ours in _OURS):
            found.append(f"{target} on {device or route.get('type', '?')}")
    return found


def check_forwarding_allowed() -> None:
    """Raise when the machine's firewall drops what pods of two nodes say to each other."""
    try:
        policy = output_of("iptables", "-w", "-S", "FORWARD")
    except ClusterError:
        return  # no iptables, so no rules of its
    if "-P FORWARD DROP" in policy and POD_RANGE not in policy:
        raise ClusterError(
            f"this machine's firewall drops forwarded packets (Docker sets it up so), and pods on "
            f"two nodes could not talk. Allow the pods' addresses and run this again: "
            f"iptables -I FORWARD -s {POD_RANGE} -d {POD_RANGE} -j ACCEPT"
        )


def _create_bridge(node: Node) -> None:
    # With an address of its own. Else a bridge takes over that of one of its pods, changes it
    # when the pod ends, and the others keep sending to the old one.
    hardware = ":".join(f"{byte:02x}" for byte in (0x0A, 0x58, *_packed(node.gateway)))
    output_of("ip", "link", "add", node.bridge, "address", hardware, "type", "bridge")
    output_of("ip", "address", "add", f"{node.gateway}/24", "dev", node.bridge)
    set_bridge(node, up=True)


def _packed(address: str) -> bytes:
    return ipaddress.IPv4Address(address).packed


def _cut(source: str, destination: str) -> tuple[str, ...]:
    return ("priority", _CUT_PRIORITY, "from", source, "to", destination, _CUT)


def _cuts() -> list[tuple[str, str]]:
    rules = json.loads(output_of("ip", "-json", "-4", "rule", "show"))
    pods = ipaddress.IPv4Network(POD_RANGE)
    cuts = [(rule["src"], rule["dst"]) for rule in rules if rule.get("action") == _CUT]
    return [cut for cut in cuts if all(_is_within(address, pods) for address in cut)]


def _is_within(address: str, pods: ipaddress.IPv4Network) -> bool:
    return address != "all" and ipaddress.IPv4Network(address).subnet_of(pods)


def _guarded_ranges() -> list[str]:
    routes = json.loads(output_of("ip", "-json", "-4", "route", "show", "type", _GUARD))
    return [route["dst"] for route in routes if _is_guard(route)]


def _is_guard(route: dict[str, Any]) -> bool:
    return route.get("type") == _GUARD and route["dst"] in {str(ours) for ours in _OURS}


def _links() -> list[dict[str, Any]]:
    links: list[dict[str, Any]] = json.loads(output_of("ip", "-json", "link", "show"))
    return links


def _bridges() -> list[str]:
    names = [str(link["ifname"]) for link in _links()]
    return [name for name in names if _BRIDGE.fullmatch(name)]


def _own_addresses() -> list[str]:
    text = output_of("ip", "-json", "-4", "address", "show", "dev", _LOOPBACK)
    found = [info["local"] for link in json.loads(text) for info in link.get("addr_info", ())]
    return [a for a in found if any(ipaddress.IPv4Address(a) in ours for ours in _OURS)]


def _remove_addresses(unwanted: list[str]) -> None:
    for address in unwanted:
        if address in _own_addresses():
            output_of("ip", "address", "delete", f"{address}/32", "dev", _LOOPBACK)

"""Ways to find things among rendered manifests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

Manifest = dict[str, Any]


class Render(Protocol):
    """Render the chart as the release `msc` in the namespace `system`."""

    def __call__(self, values: dict[str, Any] | None = None) -> list[Manifest]: ...


def find(manifests: list[Manifest], kind: str, name: str = "msc-modelscaling") -> Manifest:
    found = [
        manifest
        for manifest in manifests
        if manifest["kind"] == kind and manifest["metadata"]["name"] == name
    ]
    assert len(found) == 1, f"{len(found)} manifests are {kind} {name}"
    return found[0]


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def pod_templates(manifests: list[Manifest]) -> Iterator[Manifest]:
    """Every pod that the chart makes, whatever makes it."""
    yield from of_kind(manifests, "Pod")
    for manifest in of_kind(manifests, "Deployment", "Job"):
        yield manifest["spec"]["template"]


def rules(manifests: list[Manifest]) -> list[dict[str, Any]]:
    """Every rule of every role."""
    return [rule for role in of_kind(manifests, "Role", "ClusterRole") for rule in role["rules"]]

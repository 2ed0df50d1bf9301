"""What the end-to-end tests do with a run: apply it, watch it, read what it says of itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelscaling.api.modelscaling import API_VERSION, KIND

if TYPE_CHECKING:
    from collections.abc import Callable

    from demo.kubectl import Cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOnCluster:
    """One ModelScaling on a cluster."""

    cluster: Cluster
    namespace: str
    name: str

    def apply(self, spec: dict[str, Any]) -> None:
        """Apply the run with this spec."""
        resource = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": self.name},
            "spec": spec,
        }
        self.kubectl("apply", "--filename=-", stdin=json.dumps(resource))

    def wait(
        self, what: str, holds: Callable[[dict[str, Any]], bool], *, timeout_s: float = 90
    ) -> dict[str, Any]:
        """Return the status as soon as it `holds`; fail at the timeout with the last status."""
        status: dict[str, Any] = {}
        for content in self.cluster.watch(
            "modelscaling", self.name, f"--namespace={self.namespace}", timeout_s=timeout_s
        ):
            status = content.get("status", {})
            if holds(status):
                return status
        raise AssertionError(f"{self.name}: not {what} within {timeout_s} s; its status: {status}")

    def wait_for_state(self, state: str, *, timeout_s: float = 90) -> dict[str, Any]:
        """Return the status once the run is in `state`."""
        return self.wait(state, lambda status: status.get("state") == state, timeout_s=timeout_s)

    def wait_for_step(self, step: int, *, timeout_s: float = 90) -> dict[str, Any]:
        """Return the status once `step` optimizer steps are done."""
        return self.wait(
            f"at step {step}",
            lambda status: status.get("progress", {}).get("step", 0) >= step,
            timeout_s=timeout_s,
        )

    def pods(self) -> list[dict[str, Any]]:
        """Return the run's pods."""
        selector = f"--selector=modelscaling.dev/name={self.name}"
        items: list[dict[str, Any]] = self.cluster.get(
            "pods", selector, f"--namespace={self.namespace}"
        ).get("items", [])
        return items

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl in the run's namespace."""
        return self.cluster.run("kubectl", *arguments, f"--namespace={self.namespace}", stdin=stdin)

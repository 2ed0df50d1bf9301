"""A ModelScaling on a real cluster, as its tests speak of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelscaling.api.modelscaling import API_VERSION, KIND

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from demo.kubectl import Cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRun:
    """One run."""

    cluster: Cluster
    namespace: str
    name: str

    def apply(self, spec: dict[str, Any]) -> None:
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"namespace": self.namespace, "name": self.name},
            "spec": spec,
        }
        self.kubectl("apply", "--filename=-", stdin=json.dumps(body))

    def patch(self, **spec: Any) -> None:
        self.kubectl(
            "patch",
            "modelscaling",
            self.name,
            "--type=merge",
            f"--patch={json.dumps({'spec': spec})}",
        )

    def delete(self) -> None:
        self.kubectl("delete", "modelscaling", self.name, "--ignore-not-found", "--timeout=90s")

    def get(self) -> dict[str, Any]:
        return self.cluster.get("modelscaling", self.name, f"--namespace={self.namespace}")

    def statuses(self, *, timeout_s: float) -> Iterator[dict[str, Any]]:
        """Yield each status that is seen until the timeout."""
        here = f"--namespace={self.namespace}"
        for body in self.cluster.watch("modelscaling", here, name=self.name, timeout_s=timeout_s):
            yield body.get("status", {})

    def wait_for(
        self, holds: Callable[[dict[str, Any]], object], *, timeout_s: float = 120
    ) -> dict[str, Any]:
        """Return the status once something holds of it; fail with the last one."""
        status: dict[str, Any] = {}
        for status in self.statuses(timeout_s=timeout_s):
            if holds(status):
                return status
        raise AssertionError(
            f"{self.name}: not seen within {timeout_s} s; the last status: {status}"
        )

    def wait_for_state(self, state: str, *, timeout_s: float = 120) -> dict[str, Any]:
        return self.wait_for(lambda status: status.get("state") == state, timeout_s=timeout_s)

    def wait_for_step(self, step: int, *, timeout_s: float = 120) -> dict[str, Any]:
        return self.wait_for(lambda status: step_of(status) >= step, timeout_s=timeout_s)

    def wait_for_condition(self, kind: str, reason: str, *, timeout_s: float = 60) -> str:
        """Return the message of a condition once it gives a reason."""
        status = self.wait_for(
            lambda status: condition_of(status, kind).get("reason") == reason,
            timeout_s=timeout_s,
        )
        return str(condition_of(status, kind)["message"])

    def pods(self) -> dict[str, str]:
        """Return the names of the run's pods with their UIDs."""
        found = self.cluster.get(
            "pods", f"--selector=modelscaling.dev/name={self.name}", f"--namespace={self.namespace}"
        )
        return {p["metadata"]["name"]: p["metadata"]["uid"] for p in found.get("items", [])}

    def wait_for_no_pods(self) -> None:
        """Wait until none is left; fail if Kubernetes does not collect them, as it would not if one
        had no owner.
        """
        here = f"--selector=modelscaling.dev/name={self.name}"
        self.kubectl("wait", "pods", here, "--for=delete", "--timeout=60s")

    def members(self, status: dict[str, Any]) -> tuple[str, ...]:
        """Return the names of the pods of a status's group by rank."""
        names = {uid: name for name, uid in self.pods().items()}
        return tuple(names[uid] for uid in status["group"]["pods"])

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl in the run's namespace."""
        # First: what follows `--` is for the command in the pod.
        here = f"--namespace={self.namespace}"
        return self.cluster.run("kubectl", here, *arguments, stdin=stdin)


def step_of(status: dict[str, Any]) -> int:
    return int(status.get("progress", {}).get("step", 0))


def condition_of(status: dict[str, Any], kind: str) -> dict[str, Any]:
    return next((c for c in status.get("conditions", []) if c["type"] == kind), {})

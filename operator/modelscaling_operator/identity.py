"""Who a run is, what its objects are called and how they are labelled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modelscaling.api.modelscaling import API_VERSION, GROUP, KIND

NAME_LABEL = f"{GROUP}/name"
INDEX_LABEL = f"{GROUP}/index"
REVISION_LABEL = f"{GROUP}/revision"
ROLE_LABEL = f"{GROUP}/role"
"""What a pod is for, where it is a spare or has been one."""
SPARE = "spare"
MEMBER = "member"
FIELD_MANAGER = "modelscaling-operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIdentity:
    """One ModelScaling."""

    namespace: str
    name: str
    uid: str

    def __str__(self) -> str:
        """Return NAMESPACE/NAME, as logs and people write it."""
        return f"{self.namespace}/{self.name}"

    @property
    def service_name(self) -> str:
        """The headless Service, which gives the pods their names in DNS."""
        return self.name

    @property
    def config_map_name(self) -> str:
        """The ConfigMap with the configuration that pods warm up with."""
        return self.name

    @property
    def secret_name(self) -> str:
        """The Secret with the run's key."""
        return f"{self.name}-key"

    def pod_name(self, index: int) -> str:
        """Return the name of the pod of an index."""
        return f"{self.name}-{index}"

    @property
    def selector(self) -> str:
        """The label selector of the run's pods without its spares, which are idle: an autoscaler
        takes the mean over all that it selects.

        The API server reads it as a selector of sets, which knows no `!=`, for a scale's answer.
        """
        return f"{NAME_LABEL}={self.name},{ROLE_LABEL} notin ({SPARE})"

    def labels(self) -> dict[str, str]:
        """Return the labels of everything that belongs to the run."""
        return {
            NAME_LABEL: self.name,
            "app.kubernetes.io/name": "modelscaling-run",
            "app.kubernetes.io/instance": self.name,
            "app.kubernetes.io/component": "trainer",
            "app.kubernetes.io/part-of": "modelscaling",
            "app.kubernetes.io/managed-by": FIELD_MANAGER,
        }

    def metadata(self, name: str) -> dict[str, Any]:
        """Return the metadata of one of the run's objects; it is deleted with the run."""
        return {
            "name": name,
            "namespace": self.namespace,
            "labels": self.labels(),
            "ownerReferences": [
                {
                    "apiVersion": API_VERSION,
                    "kind": KIND,
                    "name": self.name,
                    "uid": self.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        }

"""The chart, installed once for all end-to-end tests, watching a namespace of their own."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING

import pytest

from tests.conftest import ROOT
from tests.e2e.local_run import Undisturbed
from tests.e2e.steady import spec_of_steps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo.kubectl import Cluster

_OPERATOR_NAMESPACE = "e2e-system"


@pytest.fixture(scope="session")
def run_namespace(cluster: Cluster) -> Iterator[str]:
    """The namespace in which the end-to-end runs train, with Pod Security `restricted`."""
    name = f"e2e-{uuid.uuid4().hex[:8]}"
    cluster.run("kubectl", "create", "namespace", name)
    cluster.run(
        "kubectl", "label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted"
    )
    yield name
    cluster.run("kubectl", "delete", "namespace", name, "--timeout=180s")


@pytest.fixture(scope="session")
def operator(cluster: Cluster, run_namespace: str, crd: None) -> Iterator[str]:  # noqa: ARG001
    """The operator as the chart installs it; its namespace."""
    cluster.run(
        "helm",
        *("upgrade", "--install", "e2e", str(ROOT / "charts/modelscaling")),
        *("--namespace", _OPERATOR_NAMESPACE, "--create-namespace"),
        *("--values", str(ROOT / "devcluster/values.yaml")),
        *("--set", "crds.enabled=false", "--set", "rbac.aggregate=false"),
        *("--set", f"watchNamespaces={{{run_namespace}}}"),
        *("--wait", "--timeout", "120s"),
    )
    yield _OPERATOR_NAMESPACE
    cluster.run("helm", "uninstall", "e2e", "--namespace", _OPERATOR_NAMESPACE, "--wait")
    cluster.run("kubectl", "delete", "namespace", _OPERATOR_NAMESPACE, "--timeout=120s")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The steps of the steady run in one process on this machine, which nobody disturbs."""
    return Undisturbed(spec_of_steps, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="session")
def claim(cluster: Cluster, run_namespace: str) -> str:
    """A volume that runs save to."""
    manifest = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "runs"},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    here = f"--namespace={run_namespace}"
    cluster.run("kubectl", "apply", here, "--filename=-", stdin=json.dumps(manifest))
    return "runs"

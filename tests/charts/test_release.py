"""The chart on a real cluster: installed, tested, upgraded and uninstalled by the real helm."""

from __future__ import annotations

import json
import subprocess
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ROOT
from tests.shared.spec import make_spec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from demo.kubectl import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

_RELEASE = "lifecycle"
_OPERATOR = f"{_RELEASE}-modelscaling"


@pytest.fixture
def system(cluster: Cluster) -> Iterator[str]:
    """The namespace of the release, which enforces the restricted Pod Security Standard."""
    name = f"chart-{uuid.uuid4().hex[:8]}"
    cluster.run("kubectl", "create", "namespace", name)
    cluster.run(
        "kubectl", "label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted"
    )
    yield name
    cluster.run("kubectl", "delete", "namespace", name, "--timeout=120s")


@pytest.fixture
def helm_install(
    cluster: Cluster,
    crd: None,  # noqa: ARG001 - the operator waits for it
    system: str,
    namespace: str,
) -> Iterator[list[str]]:
    """Options that keep a release to the test's own namespaces; it is gone after the test."""
    options = [
        *("--namespace", system, "--wait", "--timeout", "120s"),
        *("--values", str(ROOT / "devcluster/values.yaml")),
        *("--set", "crds.enabled=false", "--set", "rbac.aggregate=false"),
        *("--set", f"watchNamespaces={{{namespace}}}"),
    ]
    yield options
    if _RELEASE in cluster.run("helm", "list", "--short", "--namespace", system):
        cluster.run("helm", "uninstall", _RELEASE, "--namespace", system, "--no-hooks")
    for name in _names(cluster, "msc", namespace):
        cluster.run(
            *("kubectl", "patch", "msc", name, f"--namespace={namespace}", "--type=merge"),
            '--patch={"metadata":{"finalizers":null}}',
        )


def test_a_release_is_installed_upgraded_and_uninstalled_and_leaves_nothing(
    cluster: Cluster, system: str, namespace: str, package: Path, helm_install: list[str]
) -> None:
    cluster.run("helm", "install", _RELEASE, str(package), *helm_install)

    assert _ready_replicas(cluster, system) == 2
    assert "Succeeded" in cluster.run(
        "helm", "test", _RELEASE, "--namespace", system, "--timeout", "60s"
    )

    cluster.run(
        *("kubectl", "apply", f"--namespace={namespace}", "--filename=-"),
        stdin=json.dumps(
            {
                "apiVersion": "modelscaling.dev/v1alpha1",
                "kind": "ModelScaling",
                "metadata": {"name": "left-over"},
                "spec": make_spec(data__text__path="/opt/modelscaling/corpus/*.py"),
            }
        ),
    )
    cluster.run(
        *("kubectl", "wait", "msc/left-over", "--for=condition=Accepted"),
        *(f"--namespace={namespace}", "--timeout=60s"),
    )
    cluster.run(
        *("helm", "upgrade", _RELEASE, str(package), *helm_install),
        *("--set", "replicaCount=1", "--set", "log.level=DEBUG"),
    )

    assert _ready_replicas(cluster, system) == 1
    assert cluster.get("msc", "left-over", f"--namespace={namespace}")

    cluster.run(
        *("helm", "uninstall", _RELEASE, "--namespace", system, "--wait", "--timeout", "180s")
    )

    for place in (system, namespace):  # helm waits for what owns the pods
        cluster.run(
            *("kubectl", "wait", "pods", "--all", f"--namespace={place}"),
            *("--for=delete", "--timeout=90s"),
        )
    assert _names(cluster, "msc", namespace) == []
    for kind in ("pods", "services", "secrets", "networkpolicies", "roles", "rolebindings"):
        assert _names(cluster, kind, namespace) == []
    for kind in (
        *("deployments", "pods", "services", "jobs", "secrets", "networkpolicies"),
        *("roles", "rolebindings", "poddisruptionbudgets"),
    ):
        assert _names(cluster, kind, system) == []
    assert _RELEASE not in cluster.run(
        "kubectl", "get", "clusterroles,clusterrolebindings", "-o=name"
    )


def _ready_replicas(cluster: Cluster, system: str) -> int:
    status = cluster.get("deployment", _OPERATOR, f"--namespace={system}")["status"]
    return int(status.get("readyReplicas", 0))


def _names(cluster: Cluster, kind: str, namespace: str) -> list[str]:
    listed = cluster.get(kind, f"--namespace={namespace}").get("items", [])
    return [item["metadata"]["name"] for item in listed]


def test_the_operator_may_do_in_its_namespaces_what_it_may_nowhere_else(
    cluster: Cluster, system: str, namespace: str, package: Path, helm_install: list[str]
) -> None:
    cluster.run(
        *("helm", "install", _RELEASE, str(package), *helm_install),
    )
    account = f"system:serviceaccount:{system}:{_OPERATOR}"

    assert _may(cluster, account, "create", "pods", namespace)
    assert _may(cluster, account, "patch", "modelscalings/status", namespace)
    assert not _may(cluster, account, "create", "pods", system)
    assert not _may(cluster, account, "get", "secrets", system)
    assert not _may(cluster, account, "list", "modelscalings", "default")


def _may(cluster: Cluster, account: str, verb: str, resource: str, namespace: str) -> bool:
    attributes: dict[str, Any] = {"namespace": namespace, "verb": verb}
    attributes["resource"], _, attributes["subresource"] = resource.partition("/")
    attributes["group"] = "modelscaling.dev" if "modelscalings" in resource else ""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": account, "resourceAttributes": attributes},
    }
    answer = cluster.run(
        "kubectl", "create", "--filename=-", "--output=json", stdin=json.dumps(review)
    )
    return bool(json.loads(answer)["status"]["allowed"])


def test_the_api_server_takes_every_manifest_of_the_whole_cluster_as_it_is(
    cluster: Cluster, helm: str, chart: Path
) -> None:
    manifests = subprocess.check_output([helm, "template", "msc", chart], text=True, timeout=60)

    answer = cluster.run(
        *("kubectl", "apply", "--server-side", "--force-conflicts", "--dry-run=server"),
        *("--field-manager=test", "--filename=-"),
        stdin=manifests,
    )

    assert "customresourcedefinition.apiextensions.k8s.io/modelscalings.modelscaling.dev" in answer
    assert "deployment.apps/msc-modelscaling" in answer

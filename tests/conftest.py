"""What tests of several folders use: a real cluster, and how many examples are drawn."""

from __future__ import annotations

import gc
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from demo.kubectl import Cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
CRD_FILE = ROOT / "crds/modelscaling.dev_modelscalings.yaml"
CRD_NAME = "modelscalings.modelscaling.dev"

# How many examples are drawn in a look every few minutes, and by `make test`; on a busy machine any
# may take long.
settings.register_profile("quick", max_examples=25, deadline=None)
settings.register_profile("thorough", max_examples=100, deadline=None)
settings.load_profile("quick")


def pytest_collection_finish() -> None:
    """Have what was imported not looked through for cycles, a fifteenth of the unit tests' time."""
    gc.freeze()


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster of KUBECONFIG, else the devcluster, which must be up."""
    found = Cluster.from_environment(ROOT)
    if not found.kubeconfig.exists():
        pytest.fail(f"there is no cluster: {found.kubeconfig} is missing; run `make cluster`")
    return found


@pytest.fixture(scope="session")
def crd(cluster: Cluster) -> Iterator[None]:
    """The CRD, installed for the time of the tests if it was not there."""
    existed = bool(cluster.get("customresourcedefinition", CRD_NAME))
    cluster.run("kubectl", "apply", "--server-side", "--force-conflicts", f"--filename={CRD_FILE}")
    cluster.run(
        "kubectl", "wait", "--for=condition=Established", f"crd/{CRD_NAME}", "--timeout=30s"
    )
    yield
    if not existed:
        cluster.run("kubectl", "delete", "crd", CRD_NAME, "--timeout=60s")


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of the test's own, which enforces the restricted Pod Security Standard."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    cluster.run("kubectl", "create", "namespace", name)
    cluster.run(
        "kubectl", "label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted"
    )
    yield name
    cluster.run("kubectl", "delete", "namespace", name, "--timeout=120s")

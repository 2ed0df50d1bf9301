"""What a run survives: each ends with the losses and the samples of an undisturbed run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.local_run import train_locally
from tests.live_run import LiveRun
from tests.shared.spec import make_spec

if TYPE_CHECKING:
    from demo.kubectl import Cluster

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(400),
    pytest.mark.usefixtures("operator"),
]

_TOTAL_STEPS = 800
_LOSS_TOLERANCE = 1e-4


def _spec(**changes: Any) -> dict[str, Any]:
    """Return a run of about half a minute, in fp32 at a rate that does not amplify rounding."""
    return make_spec(
        **{
            "model__contextLength": 128,
            "replicas": 2,
            "data__text__path": "/opt/modelscaling/corpus/a*.py",
            "training__tokens": 8 * 128 * _TOTAL_STEPS,
            "training__learningRate": "3e-4",
            "training__precision": "Float32",
            "training__validateEverySteps": 0,
            "checkpoint": {
                "volume": {"persistentVolumeClaim": {"claimName": "faults"}},
                "everySteps": 100,
            },
            # A worker takes as many threads as its pod has processors: here all share a machine.
            "template": {
                "spec": {
                    "containers": [
                        {"name": "trainer", "env": [{"name": "OMP_NUM_THREADS", "value": "1"}]}
                    ]
                }
            },
            **changes,
        }
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The last step of the same run on this machine, in one process, that nobody disturbed."""
    return train_locally(_spec(checkpoint=None), tmp_path_factory.mktemp("undisturbed"))[-1]


@pytest.fixture(scope="module")
def claim(cluster: Cluster, run_namespace: str) -> None:
    """The volume that the runs of this file save to."""
    manifest = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "faults"},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    cluster.run(
        "kubectl",
        "apply",
        f"--namespace={run_namespace}",
        "--filename=-",
        stdin=json.dumps(manifest),
    )


def _assert_undisturbed(status: dict[str, Any], undisturbed: dict[str, Any]) -> None:
    progress = status["progress"]
    assert progress["step"] == undisturbed["step"] == _TOTAL_STEPS
    assert progress["sampleDigest"] == undisturbed["sample_digest"]
    assert float(progress["loss"]) == pytest.approx(undisturbed["loss"], abs=_LOSS_TOLERANCE)


@pytest.mark.usefixtures("claim")
def test_a_killed_trainer_pod_costs_no_more_than_steps_since_the_checkpoint(
    cluster: Cluster, run_namespace: str, undisturbed: dict[str, Any]
) -> None:
    run = LiveRun(cluster=cluster, namespace=run_namespace, name="pod-killed")
    run.apply(_spec())
    run.wait_for_step(250)

    run.kubectl("delete", "pod", "pod-killed-0", "--grace-period=0", "--force")
    status = run.wait_for_state("Complete", timeout_s=180)
    run.delete()

    _assert_undisturbed(status, undisturbed)


@pytest.mark.usefixtures("claim")
def test_a_killed_operator_leaves_the_run_alone_and_its_successor_creates_nothing_twice(
    cluster: Cluster, run_namespace: str, operator: str, undisturbed: dict[str, Any]
) -> None:
    run = LiveRun(cluster=cluster, namespace=run_namespace, name="operator-killed")
    run.apply(_spec())
    run.wait_for_step(100)
    before = set(run.pods().values())

    cluster.run(
        "kubectl",
        "delete",
        "pods",
        "--all",
        f"--namespace={operator}",
        "--grace-period=0",
        "--force",
    )
    status = run.wait_for_state("Complete", timeout_s=180)
    after = set(run.pods().values())
    run.delete()

    assert before == after
    assert len(after) == 2
    assert status["group"]["generation"] == 1
    _assert_undisturbed(status, undisturbed)


@pytest.mark.usefixtures("claim")
def test_a_run_that_was_suspended_and_scaled_is_the_undisturbed_run(
    cluster: Cluster, run_namespace: str, undisturbed: dict[str, Any]
) -> None:
    run = LiveRun(cluster=cluster, namespace=run_namespace, name="scaled")
    run.apply(_spec(replicas=4, suspend=True))
    run.kubectl("scale", "msc/scaled", "--replicas=1")
    run.patch(suspend=False)
    run.wait_for_step(100)

    run.patch(suspend=True)
    suspended = run.wait_for_state("Suspended")
    assert run.pods() == {}
    run.kubectl("scale", "msc/scaled", "--replicas=2")
    run.patch(suspend=False)
    run.wait_for_step(suspended["progress"]["step"] + 50)
    run.kubectl("scale", "msc/scaled", "--replicas=1")
    status = run.wait_for_state("Complete", timeout_s=180)
    run.delete()

    assert [record["lostSteps"] for record in status.get("rescales", [])] == [0] * len(
        status.get("rescales", [])
    )
    _assert_undisturbed(status, undisturbed)

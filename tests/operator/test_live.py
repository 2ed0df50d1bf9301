"""The operator against a real API server, with real pods and real training."""

from __future__ import annotations

import signal
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.steady import wait_for_pods
from tests.live_run import LiveRun, condition_of, step_of
from tests.operator.conftest import LEASE_DURATION_S
from tests.shared.spec import make_spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from demo.kubectl import Cluster
    from tests.operator.conftest import OperatorProcess

    Apply = Callable[..., LiveRun]

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

_DATA = "/opt/modelscaling/corpus/**/json/*.py"
_START_S = 180
"""Importing torch in several pods at once takes a while where two cores do it."""


def small_spec(**changes: Any) -> dict[str, Any]:
    return make_spec(
        **{
            "replicas": 2,
            "data__text__path": _DATA,
            "data__validationFraction": "0.1",
            "training__precision": "Float32",
            "training__compile": "Never",
            "training__validateEverySteps": 0,
            **changes,
        }
    )


@pytest.fixture
def claim(cluster: Cluster, namespace: str) -> dict[str, Any]:
    """A checkpoint spec with a claim that the pods share."""
    cluster.run("kubectl", "apply", "--filename=-", stdin=_CLAIM % namespace)
    return {"volume": {"persistentVolumeClaim": {"claimName": "runs"}}, "everySteps": 20}


_CLAIM = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {namespace: %s, name: runs}
spec:
  accessModes: [ReadWriteMany]
  resources: {requests: {storage: 100Mi}}
"""


def test_a_run_trains_to_completion_and_its_deletion_leaves_nothing(
    apply: Apply, cluster: Cluster, operator: OperatorProcess, namespace: str
) -> None:
    run = apply("tiny", small_spec())

    status = run.wait_for_state("Complete", timeout_s=_START_S)

    assert status["progress"]["step"] == status["progress"]["totalSteps"] == 125
    assert status["progress"]["tokens"] == 125 * 8 * 64
    assert float(status["progress"]["loss"]) < 5.6
    assert status["plan"]["mesh"] == "dp2"
    assert status["model"]["size"] == "98.6k"
    assert status["group"]["generation"] == 1
    assert status["observedGeneration"] == 1
    assert sorted(run.pods()) == ["tiny-0", "tiny-1"]
    with urllib.request.urlopen(f"http://127.0.0.1:{operator.port}/metrics", timeout=5) as answer:
        metrics = answer.read().decode()
    series = f'modelscaling_replicas{{name="tiny",namespace="{namespace}",state="wished"}} 2.0'
    assert series in metrics

    run.delete()

    for kind in ("pods", "services", "configmaps", "secrets"):
        cluster.run(
            "kubectl",
            "wait",
            kind,
            "--for=delete",
            "--selector=modelscaling.dev/name=tiny",
            f"--namespace={namespace}",
            "--timeout=60s",
        )


# So that the next operator need not wait long for the lease of the killed one.
@pytest.mark.parametrize("lease_duration_s", [3])
def test_a_run_survives_the_loss_of_a_pod_and_of_the_operator(
    apply: Apply,
    cluster: Cluster,
    operator: OperatorProcess,
    namespace: str,
    claim: dict[str, Any],
) -> None:
    run = apply("robust", small_spec(checkpoint=claim, training__tokens="20M"))
    before = run.wait_for_step(5, timeout_s=_START_S)
    pods = run.pods()

    operator.end(signal.SIGKILL)
    operator.lease_duration_s = LEASE_DURATION_S
    operator.start()
    after = run.wait_for_step(step_of(before) + 5)

    assert run.pods() == pods
    # Not the whole group: whether it was seen to train may follow its first steps.
    for field in ("generation", "digest", "decidedTime"):
        assert after["group"][field] == before["group"][field]
    assert after["restarts"]["count"] == 0

    cluster.run(
        "kubectl",
        "delete",
        "pod",
        "robust-1",
        f"--namespace={namespace}",
        "--force",
        "--wait=false",
    )
    recovered = run.wait_for(
        lambda status: status["group"]["generation"] == 2 and bool(status.get("rescales")),
        timeout_s=_START_S,
    )

    assert recovered["restarts"]["count"] == 0
    # The kubelet ends the pod of a forced deletion in order, unless the operator misses it first.
    assert recovered["rescales"][-1]["cause"] in {"GroupBroke", "PodLeft"}
    members = recovered["group"]["pods"]
    assert members[0] == pods["robust-0"]
    assert pods["robust-1"] not in members
    # The newcomer has another index where the old pod was still there when it was created.
    wait_for_pods(run, members)


def test_a_suspended_run_goes_on_from_its_step(apply: Apply, claim: dict[str, Any]) -> None:
    run = apply("pausing", small_spec(replicas=1, checkpoint=claim, training__tokens="4M"))
    running = run.wait_for_step(5, timeout_s=_START_S)

    run.patch(suspend=True)
    suspended = run.wait_for_state("Suspended")

    assert run.pods() == {}
    assert step_of(suspended) >= step_of(running)
    assert suspended["restarts"]["count"] == 0

    run.patch(suspend=False)
    resumed = run.wait_for(
        lambda status: status["state"] == "Running" and status["group"]["trained"],
        timeout_s=_START_S,
    )

    assert resumed["group"]["generation"] == 2
    assert step_of(resumed) >= step_of(suspended)


@pytest.mark.parametrize(
    ("changes", "kind", "reason", "message"),
    [
        pytest.param(
            {"replicas": 3},
            "Accepted",
            "InvalidSpec",
            "spec.training.globalBatchSize: 8 is not divisible by the data-parallel size 3",
            id="a batch that cannot be cut",
        ),
        pytest.param(
            {"template": {"spec": 5}},
            "Accepted",
            "InvalidTemplate",
            "spec.template.spec=5 must be a map",
            id="a template that is none",
        ),
        pytest.param(
            {"template": {"spec": {"nodeSelektor": {"gpu": "yes"}}}},
            "Accepted",
            "InvalidTemplate",
            "nodeSelektor",
            id="a misspelt field of the template",
        ),
        pytest.param(
            {"checkpoint": {"volume": {"foo": 1}}},
            "Accepted",
            "InvalidTemplate",
            "spec.checkpoint.volume={'foo': 1} is not a volume source",
            id="a volume that is none",
        ),
        pytest.param(
            {"checkpoint": {"volume": {"foo": {}}}},
            "Accepted",
            "InvalidTemplate",
            "foo",
            id="a volume source that does not exist",
        ),
        pytest.param(
            {"template": {"spec": {"securityContext": {"runAsNonRoot": False, "runAsUser": 0}}}},
            "Running",
            "PodForbidden",
            "violates PodSecurity",
            id="a pod that Pod Security forbids",
        ),
    ],
)
def test_what_cannot_work_is_told_and_starts_nothing(
    apply_shared: Apply, changes: dict[str, Any], kind: str, reason: str, message: str
) -> None:
    run = apply_shared("bad", small_spec(**changes))

    assert message in run.wait_for_condition(kind, reason)
    assert run.pods() == {}


@pytest.mark.parametrize(
    ("changes", "reason", "message"),
    [
        pytest.param(
            {"checkpoint": {"volume": {"persistentVolumeClaim": {"claimName": "nowhere"}}}},
            "Unschedulable",
            'persistentvolumeclaim "nowhere" not found',
            id="a claim that does not exist",
        ),
        pytest.param(
            {
                "template": {
                    "spec": {"containers": [{"name": "trainer", "image": "invalid.invalid/no:1"}]}
                }
            },
            "PodCannotStart",
            "invalid.invalid/no:1",
            id="an image that cannot be pulled",
        ),
        pytest.param(
            {
                "template": {
                    "spec": {
                        "containers": [
                            {"name": "trainer", "resources": {"requests": {"cpu": "10k"}}}
                        ]
                    }
                }
            },
            "Unschedulable",
            "Insufficient cpu",
            id="more than any node has",
        ),
    ],
)
def test_what_keeps_pods_from_starting_is_told(
    apply_shared: Apply, changes: dict[str, Any], reason: str, message: str
) -> None:
    run = apply_shared("waiting", small_spec(**changes))

    assert message in run.wait_for_condition("Running", reason)
    assert run.get()["status"]["state"] == "Pending"


def test_data_that_is_not_there_fails_the_run_at_once_and_keeps_its_pods(apply: Apply) -> None:
    run = apply("empty", small_spec(replicas=1, data__text__path="/nowhere/*.txt"))

    status = run.wait_for_state("Failed", timeout_s=_START_S)

    failed = condition_of(status, "Failed")
    assert failed["reason"] == "NoData"
    assert "/nowhere/*.txt" in failed["message"]
    assert status["restarts"]["count"] == 0
    assert list(run.pods()) == ["empty-0"]

"""Changes of a run that trains: each redoes nothing and ends as the undisturbed run does."""

from __future__ import annotations

import json
from signal import SIGCONT, SIGSTOP
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.in_pods import signal_worker
from tests.e2e.steady import (
    assert_followed,
    begin,
    causes,
    finish,
    has_told,
    lost_steps,
    saved,
    steady_spec,
)
from tests.live_run import LiveRun, condition_of, step_of

if TYPE_CHECKING:
    from demo.kubectl import Cluster
    from tests.e2e.local_run import Undisturbed

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(400),
    pytest.mark.usefixtures("operator"),
]


def _mesh_of(status: dict[str, Any]) -> str:
    """Return the mesh of the group, once that has told what its change cost."""
    group = status.get("group") or {}
    return str(group["mesh"]) if has_told(group) else ""


def _follow(run: LiveRun, *, until: str) -> list[dict[str, Any]]:
    """Return the progress that is seen until the group has a mesh."""
    seen: list[dict[str, Any]] = []
    for status in run.statuses(timeout_s=120):
        if "loss" in status.get("progress", {}):
            seen.append(status["progress"])
        if _mesh_of(status) == until:
            return seen
    raise AssertionError(f"the mesh is {_mesh_of(status)}, expected {until}")


def test_a_sharded_run_without_checkpoints_is_scaled_and_laid_out_anew_while_it_trains(
    cluster: Cluster, run_namespace: str, undisturbed: Undisturbed
) -> None:
    run = begin(
        cluster, run_namespace, "edited", parallelism={"strategy": "Custom", "dataReplicate": 1}
    )

    seen: list[dict[str, Any]] = []
    for mesh, edit in (
        ("fsdp2", {"replicas": 3}),
        ("fsdp3", {"replicas": 4, "parallelism": {"dataReplicate": 2}}),
        (
            "dp2×fsdp2",
            {
                "parallelism": {
                    "dataReplicate": 1,
                    "tensor": 2,
                    "pipeline": 2,
                    "tensorPlacement": "AcrossPods",
                }
            },
        ),
        ("pp2×tp2", {"replicas": 2, "parallelism": {"tensor": 1, "pipeline": 1}}),
    ):
        seen += _follow(run, until=mesh)
        run.patch(**edit)
    seen += _follow(run, until="fsdp2")
    status = finish(run, undisturbed)

    meshes = [(r["from"], r["to"]) for r in status["rescales"]]
    assert meshes == [
        ("fsdp2", "fsdp3"),
        ("fsdp3", "dp2×fsdp2"),
        ("dp2×fsdp2", "pp2×tp2"),
        ("pp2×tp2", "fsdp2"),
    ]
    assert lost_steps(status) == 0
    assert {r["source"] for r in status["rescales"]} == {"Memory"}
    assert_followed(seen, undisturbed)


def test_of_edits_that_come_close_together_the_last_one_wins(
    cluster: Cluster, run_namespace: str, undisturbed: Undisturbed
) -> None:
    run = begin(cluster, run_namespace, "hurried")

    for replicas in (4, 1, 3, 3):
        run.kubectl("scale", "msc/hurried", f"--replicas={replicas}")
    run.wait_for(lambda status: _mesh_of(status) == "dp3")
    status = finish(run, undisturbed)

    assert lost_steps(status) == 0
    assert status["rescales"][-1]["to"] == "dp3"


def test_a_change_that_has_no_room_leaves_the_group_training_and_can_be_taken_back(
    cluster: Cluster, run_namespace: str, undisturbed: Undisturbed
) -> None:
    run = begin(cluster, run_namespace, "crowded")
    quota: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "crowded"},
        "spec": {
            "hard": {"pods": str(len(cluster.get("pods", "--namespace", run_namespace)["items"]))}
        },
    }
    run.kubectl("apply", "--filename=-", stdin=json.dumps(quota))
    try:
        # Until the quota's controller has noted the bound, nothing is refused.
        noted = f"--for=jsonpath={{.status.hard.pods}}={quota['spec']['hard']['pods']}"
        run.kubectl("wait", "resourcequota/crowded", noted, "--timeout=30s")
        run.kubectl("scale", "msc/crowded", "--replicas=3")
        waiting = run.wait_for(
            lambda status: condition_of(status, "Rescaling").get("reason") == "PodForbidden"
        )
        later = run.wait_for_step(step_of(waiting) + 50)
    finally:
        run.kubectl("delete", "resourcequota", "crowded")
    grown = run.wait_for(lambda status: _mesh_of(status) == "dp3")
    run.kubectl("scale", "msc/crowded", "--replicas=2")
    status = finish(run, undisturbed)

    assert condition_of(later, "Running")["status"] == "True"
    assert "dp2" in condition_of(waiting, "Rescaling")["message"]
    assert "crowded" in condition_of(waiting, "Rescaling")["message"]
    assert causes(grown) == ["ReplicasChanged"]
    assert lost_steps(status) == 0


def test_a_horizontal_pod_autoscaler_moves_a_run(
    cluster: Cluster, run_namespace: str, undisturbed: Undisturbed
) -> None:
    run = begin(cluster, run_namespace, "autoscaled", step=20, replicas=1)
    autoscaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "autoscaled"},
        "spec": {
            "scaleTargetRef": {
                "apiVersion": "modelscaling.dev/v1alpha1",
                "kind": "ModelScaling",
                "name": "autoscaled",
            },
            "minReplicas": 2,
            "maxReplicas": 4,
        },
    }
    run.kubectl("apply", "--filename=-", stdin=json.dumps(autoscaler))
    grown = run.wait_for(lambda status: _mesh_of(status) == "dp2")
    bounds = {"spec": {"minReplicas": 1, "maxReplicas": 1}}
    run.kubectl("patch", "hpa", "autoscaled", f"--patch={json.dumps(bounds)}")
    # The autoscaler looks every 15 s: training waits, so that it does not end meanwhile.
    signal_worker(run, "autoscaled-0", SIGSTOP)
    run.wait_for(lambda status: status["observedGeneration"] > grown["observedGeneration"])
    signal_worker(run, "autoscaled-0", SIGCONT)
    shrunk = run.wait_for(lambda status: _mesh_of(status) == "single")
    found = cluster.get("hpa", "autoscaled", f"--namespace={run_namespace}")
    run.kubectl("delete", "hpa", "autoscaled")
    status = finish(run, undisturbed)

    assert found["status"]["currentReplicas"] >= 1
    assert causes(grown) == ["ReplicasChanged"]
    assert causes(shrunk) == ["ReplicasChanged", "ReplicasChanged"]
    assert lost_steps(status) == 0


def test_a_run_that_was_suspended_and_scaled_is_the_undisturbed_run(
    cluster: Cluster, run_namespace: str, claim: str, undisturbed: Undisturbed
) -> None:
    run = LiveRun(cluster=cluster, namespace=run_namespace, name="paused")
    run.apply(steady_spec(checkpoint=saved(claim), replicas=4, suspend=True))
    run.kubectl("scale", "msc/paused", "--replicas=1")
    run.patch(suspend=False)
    run.wait_for_step(100)

    run.kubectl("scale", "msc/paused", "--replicas=0")
    paused = run.wait_for_state("Suspended")
    pods = run.pods()
    run.kubectl("scale", "msc/paused", "--replicas=2")
    run.wait_for_step(paused["progress"]["step"] + 50)
    run.kubectl("scale", "msc/paused", "--replicas=1")
    status = finish(run, undisturbed)

    assert pods == {}
    assert paused["progress"]["checkpointStep"] == paused["progress"]["step"]
    assert lost_steps(status) == 0


def test_a_pod_that_is_evicted_hands_its_state_over(
    cluster: Cluster, run_namespace: str, undisturbed: Undisturbed
) -> None:
    run = begin(
        cluster, run_namespace, "drained", parallelism={"strategy": "Custom", "dataReplicate": 1}
    )
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": "drained-0", "namespace": run_namespace},
    }

    run.kubectl(
        "create",
        f"--raw=/api/v1/namespaces/{run_namespace}/pods/drained-0/eviction",
        "--filename=-",
        stdin=json.dumps(eviction),
    )
    run.wait_for(lambda status: causes(status) == ["PodLeft"])
    status = finish(run, undisturbed)

    assert causes(status) == ["PodLeft"]
    assert lost_steps(status) == 0

"""What a run loses without being asked: workers, pods, nodes, the network, the API server."""

from __future__ import annotations

import time
from contextlib import contextmanager
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import TYPE_CHECKING

import pytest

from devcluster import (
    cut_network,
    cut_pair,
    join_network,
    join_pair,
    lose_node,
    processes,
    return_node,
)
from devcluster.layout import Layout
from devcluster.up import up
from tests.e2e.in_pods import (
    check_checkpoints,
    signal_worker,
    tear_newest_checkpoint,
    wait_for_attempt,
)
from tests.e2e.steady import begin, causes, finish, is_settled, lost_steps, saved
from tests.live_run import condition_of, step_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo.kubectl import Cluster
    from tests.e2e.local_run import Undisturbed
    from tests.live_run import LiveRun

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(400),
    pytest.mark.usefixtures("operator"),
]

_ELASTIC = {"minReplicas": 1}
_STOPPED_S = 30.0
"""A worker of short steps is said to be late after 20 s, and given up after 60 s."""


def _node_of(run: LiveRun, pod: str) -> str:
    found = run.cluster.get("pod", pod, f"--namespace={run.namespace}")
    return str(found["spec"]["nodeName"])


@contextmanager
def _no_operator(cluster: Cluster, namespace: str) -> Iterator[None]:
    here = f"--namespace={namespace}"
    deployment = cluster.run("kubectl", "get", "deployment", here, "--output=name").strip()
    cluster.run("kubectl", "scale", here, deployment, "--replicas=0")
    cluster.run("kubectl", "wait", here, "pods", "--all", "--for=delete", "--timeout=60s")
    try:
        yield
    finally:
        cluster.run("kubectl", "scale", here, deployment, "--replicas=1")
        cluster.run("kubectl", "rollout", "status", here, deployment, "--timeout=60s")


def test_a_killed_worker_is_replaced_in_its_pod(
    cluster: Cluster, run_namespace: str, undisturbed: Undisturbed
) -> None:
    run = begin(cluster, run_namespace, "worker-killed")
    before = run.pods()

    signal_worker(run, "worker-killed-0", SIGKILL)
    run.wait_for(lambda status: causes(status) == ["WorkerReplaced"])
    signal_worker(run, "worker-killed-1", SIGKILL)
    status = run.wait_for(lambda status: len(causes(status)) == 2)
    after = run.pods()
    finish(run, undisturbed)

    assert before == after
    assert causes(status) == ["WorkerReplaced", "WorkerReplaced"]
    assert status["restarts"]["count"] == 2
    assert lost_steps(status) == 0


def test_a_killed_pod_is_done_without_until_another_is_there(
    cluster: Cluster, run_namespace: str, undisturbed: Undisturbed
) -> None:
    run = begin(cluster, run_namespace, "shrinks", elastic=_ELASTIC)

    run.kubectl("delete", "pod", "shrinks-0", "--grace-period=0", "--force")
    run.wait_for(lambda status: len(causes(status)) == 2)
    status = finish(run, undisturbed)

    assert [(r["from"], r["to"]) for r in status["rescales"]] == [
        ("dp2", "single"),
        ("single", "dp2"),
    ]
    assert lost_steps(status) == 0


def test_a_spare_takes_the_place_of_a_killed_pod(
    cluster: Cluster, run_namespace: str, undisturbed: Undisturbed
) -> None:
    run = begin(cluster, run_namespace, "spared", elastic={"spares": 1})
    here = f"--selector=modelscaling.dev/name={run.name}"
    run.kubectl("wait", "pods", here, "--for=condition=Ready", "--timeout=60s")
    role = f"{here},modelscaling.dev/role=spare"
    spare = next(cluster.watch("pods", role, f"--namespace={run_namespace}", timeout_s=60))
    members = run.get()["status"]["group"]["pods"]
    member = next(name for name, uid in run.pods().items() if uid == members[1])

    run.kubectl("delete", "pod", member, "--grace-period=0", "--force")
    changed = run.wait_for(lambda status: len(status.get("rescales", [])) == 1)
    selected = cluster.get(
        "pods", f"--selector={changed['selector']}", f"--namespace={run_namespace}"
    )
    status = finish(run, undisturbed)

    uid = spare["metadata"]["uid"]
    assert uid not in members
    assert uid in {pod["metadata"]["uid"] for pod in selected["items"]}
    assert changed["group"]["pods"] == [members[0], uid]
    assert float(changed["rescales"][0]["downtimeSeconds"]) < 5
    assert lost_steps(status) == 0


def test_a_pod_killed_under_an_invalid_spec_costs_no_more_than_the_steps_since_the_checkpoint(
    cluster: Cluster, run_namespace: str, claim: str, undisturbed: Undisturbed
) -> None:
    run = begin(cluster, run_namespace, "pod-killed", step=250, checkpoint=saved(claim))

    # The run goes on with the spec that it had before.
    run.patch(template={"spec": 5})
    run.wait_for_condition("Accepted", "InvalidTemplate")
    run.kubectl("delete", "pod", "pod-killed-0", "--grace-period=0", "--force")
    run.wait_for(lambda status: len(causes(status)) == 1)
    check_checkpoints(run)
    status = finish(run, undisturbed)

    assert len(causes(status)) == 1
    assert lost_steps(status) <= 100


def test_a_run_whose_pods_are_all_killed_goes_on_from_the_newest_checkpoint_that_is_whole(
    cluster: Cluster, run_namespace: str, claim: str, undisturbed: Undisturbed
) -> None:
    run = begin(cluster, run_namespace, "torn", step=200, checkpoint=saved(claim))
    run.wait_for(lambda status: status["progress"].get("checkpointStep", 0) >= 200)

    # Training waits, so that nothing newer is saved meanwhile.
    signal_worker(run, "torn-0", SIGSTOP)
    torn = tear_newest_checkpoint(run, "torn-0")
    # Steps are lost that somebody has heard of.
    run.wait_for_step(torn)
    run.kubectl("delete", "pods", "torn-0", "torn-1", "--grace-period=0", "--force")
    changed = run.wait_for(lambda status: len(causes(status)) == 1)
    finish(run, undisturbed)

    (record,) = changed["rescales"]
    assert (record["source"], record["step"]) == ("Checkpoint", torn - 100)
    assert record["lostSteps"] >= 100


def test_a_sharded_run_without_checkpoints_goes_on_from_copies_in_memory(
    cluster: Cluster, run_namespace: str, undisturbed: Undisturbed
) -> None:
    run = begin(
        cluster,
        run_namespace,
        "copied",
        step=200,
        parallelism={"strategy": "Custom", "dataReplicate": 1},
    )

    signal_worker(run, "copied-1", SIGKILL)
    run.wait_for(lambda status: causes(status) == ["WorkerReplaced"])
    status = finish(run, undisturbed)

    (record,) = status["rescales"]
    assert record["source"] == "Snapshot"
    assert record["step"] > 0


def test_a_lost_node_is_given_up_by_the_pods_and_not_by_kubernetes(
    cluster: Cluster, run_namespace: str, undisturbed: Undisturbed
) -> None:
    run = begin(cluster, run_namespace, "node-lost", elastic=_ELASTIC)
    node = _node_of(run, "node-lost-1")

    cut_network(node)
    try:
        shrunk = run.wait_for(lambda status: len(status.get("rescales", [])) >= 1, timeout_s=60)
    finally:
        join_network(node)
    status = finish(run, undisturbed)

    assert shrunk["rescales"][0]["cause"] == "NodeLost"
    assert lost_steps(status) == 0


def test_of_two_pods_that_cannot_reach_each_other_one_is_replaced(
    cluster: Cluster, run_namespace: str, undisturbed: Undisturbed
) -> None:
    run = begin(cluster, run_namespace, "severed", replicas=3)
    pods = [
        cluster.get("pod", f"severed-{index}", f"--namespace={run_namespace}") for index in (1, 2)
    ]
    assert len({pod["spec"]["nodeName"] for pod in pods}) == 2  # else they share a bridge
    addresses = [pod["status"]["podIP"] for pod in pods]

    sentence = "pod severed-2 and severed-1 cannot reach each other"
    cut_pair(*addresses)
    try:
        # A later failure, such as of the pod that is being ended, takes the message's place.
        run.wait_for(
            lambda status: sentence in status.get("restarts", {}).get("message", ""), timeout_s=60
        )
        changed = run.wait_for(lambda status: len(status.get("rescales", [])) == 1, timeout_s=60)
    finally:
        join_pair(*addresses)
    status = finish(run, undisturbed)

    (record,) = changed["rescales"]
    assert record["cause"] == "PodsSevered"
    assert float(record["downtimeSeconds"]) < 40  # and not the collectives' timeout of 300
    assert lost_steps(status) == 0


def test_a_node_that_is_switched_off_takes_no_step_with_it(
    cluster: Cluster, run_namespace: str, undisturbed: Undisturbed
) -> None:
    run = begin(cluster, run_namespace, "switched-off")
    node = _node_of(run, "switched-off-0")

    lose_node(node)
    try:
        run.wait_for(lambda status: len(status.get("rescales", [])) == 1)
    finally:
        return_node(node)
    status = finish(run, undisturbed)

    assert lost_steps(status) == 0


def test_a_rank_that_is_stopped_for_half_a_minute_is_said_to_lag(
    cluster: Cluster, run_namespace: str, undisturbed: Undisturbed
) -> None:
    run = begin(cluster, run_namespace, "stopped")

    pods = run.pods()
    signal_worker(run, "stopped-1", SIGSTOP)
    stopped_at = time.monotonic()
    said = run.wait_for(
        lambda status: (
            "rank 1 in pod stopped-1 does not come on"
            in condition_of(status, "Stalled").get("message", "")
        )
    )
    # On a busy machine it may have been said so late that none are left.
    left_s = max(stopped_at + _STOPPED_S - time.monotonic(), 5)
    meanwhile = list(run.statuses(timeout_s=left_s))
    stopped_s = time.monotonic() - stopped_at
    signal_worker(run, "stopped-1", SIGCONT)
    run.wait_for(
        lambda status: (
            step_of(status) > step_of(said) and condition_of(status, "Stalled")["status"] == "False"
        )
    )
    same = run.pods()
    status = finish(run, undisturbed)

    assert stopped_s >= _STOPPED_S
    assert {step_of(status) for status in meanwhile} == {step_of(said)}
    assert {condition_of(status, "Stalled")["status"] for status in meanwhile} == {"True"}
    assert same == pods
    assert causes(status) == []
    assert status.get("restarts", {}).get("count", 0) == 0


def test_a_rank_that_is_stopped_for_good_is_replaced_in_its_pod(
    cluster: Cluster, run_namespace: str, undisturbed: Undisturbed
) -> None:
    run = begin(cluster, run_namespace, "hung")
    before = run.pods()

    signal_worker(run, "hung-0", SIGSTOP)
    status = run.wait_for(lambda status: causes(status) == ["WorkerReplaced"])
    after = run.pods()
    finish(run, undisturbed)

    assert before == after
    assert "rank 0 was not heard of for" in status["restarts"]["message"]
    assert status["restarts"]["count"] == 1
    assert lost_steps(status) == 0


def test_a_crashed_worker_is_replaced_while_there_is_no_operator(
    cluster: Cluster, run_namespace: str, operator: str, undisturbed: Undisturbed
) -> None:
    run = begin(cluster, run_namespace, "alone")

    with _no_operator(cluster, operator):
        signal_worker(run, "alone-1", SIGKILL)
        wait_for_attempt(run, "alone-0", 2)
    run.wait_for(lambda status: causes(status) == ["WorkerReplaced"])
    status = finish(run, undisturbed)

    assert causes(status) == ["WorkerReplaced"]
    assert lost_steps(status) == 0


def test_a_killed_operator_leaves_the_run_alone_and_its_successor_creates_nothing_twice(
    cluster: Cluster, run_namespace: str, operator: str, undisturbed: Undisturbed
) -> None:
    run = begin(cluster, run_namespace, "operator-killed")
    before = run.pods()

    here = f"--namespace={operator}"
    cluster.run("kubectl", "delete", "pods", "--all", here, "--grace-period=0", "--force")
    run.wait_for_step(step_of(run.get()["status"]) + 100)
    after = run.pods()
    status = finish(run, undisturbed)

    assert before == after
    assert status["group"]["generation"] == 1


def test_the_api_server_and_etcd_may_restart_in_the_middle_of_a_change(
    cluster: Cluster, run_namespace: str, claim: str, undisturbed: Undisturbed
) -> None:
    run = begin(cluster, run_namespace, "restarted", checkpoint=saved(claim))
    layout = Layout.here()
    running = processes.running(layout.home)

    run.kubectl("scale", "msc/restarted", "--replicas=3")
    processes.kill([running["kube-apiserver"], running["etcd"]])
    up(layout)
    run.wait_for(
        lambda status: is_settled(status, 3) and bool(status["progress"].get("checkpointStep"))
    )
    check_checkpoints(run)
    status = finish(run, undisturbed)

    assert status["group"]["members"] == 3
    assert lost_steps(status) == 0

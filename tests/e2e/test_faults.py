"""What a run survives: each ends with the losses and the samples of an undisturbed run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.steady import assert_undisturbed, lost_steps, saved, steady_spec
from tests.live_run import LiveRun

if TYPE_CHECKING:
    from demo.kubectl import Cluster

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(400),
    pytest.mark.usefixtures("operator"),
]


def test_a_killed_trainer_pod_costs_no_more_than_steps_since_the_checkpoint(
    cluster: Cluster, run_namespace: str, claim: str, undisturbed: list[dict[str, Any]]
) -> None:
    run = LiveRun(cluster=cluster, namespace=run_namespace, name="pod-killed")
    run.apply(steady_spec(checkpoint=saved(claim)))
    run.wait_for_step(250)

    run.kubectl("delete", "pod", "pod-killed-0", "--grace-period=0", "--force")
    status = run.wait_for_state("Complete", timeout_s=180)
    run.delete()

    assert_undisturbed(status, undisturbed)


def test_a_killed_operator_leaves_the_run_alone_and_its_successor_creates_nothing_twice(
    cluster: Cluster,
    run_namespace: str,
    operator: str,
    claim: str,
    undisturbed: list[dict[str, Any]],
) -> None:
    run = LiveRun(cluster=cluster, namespace=run_namespace, name="operator-killed")
    run.apply(steady_spec(checkpoint=saved(claim)))
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
    assert_undisturbed(status, undisturbed)


def test_a_run_that_was_suspended_and_scaled_is_the_undisturbed_run(
    cluster: Cluster, run_namespace: str, claim: str, undisturbed: list[dict[str, Any]]
) -> None:
    run = LiveRun(cluster=cluster, namespace=run_namespace, name="scaled")
    run.apply(steady_spec(checkpoint=saved(claim), replicas=4, suspend=True))
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

    assert lost_steps(status) == 0
    assert_undisturbed(status, undisturbed)

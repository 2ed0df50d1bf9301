"""What the spec says of its pods is edited while the run trains: other pods take over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.steady import begin, causes, finish, lost_steps, saved
from tests.live_run import condition_of, step_of

if TYPE_CHECKING:
    from demo.kubectl import Cluster
    from tests.e2e.local_run import Undisturbed
    from tests.live_run import LiveRun

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(300),
    pytest.mark.usefixtures("operator"),
]


def _template(**container: Any) -> dict[str, Any]:
    threads = {"name": "OMP_NUM_THREADS", "value": "1"}
    environment = [threads, *container.pop("env", [])]
    return {"spec": {"containers": [{"name": "trainer", "env": environment, **container}]}}


def _marks(run: LiveRun) -> list[list[str]]:
    """Return what the pods have in their environment under MARK."""
    here = (f"--selector=modelscaling.dev/name={run.name}", f"--namespace={run.namespace}")
    pods = run.cluster.get("pods", *here)["items"]
    return [
        [e["value"] for e in pod["spec"]["containers"][0]["env"] if e["name"] == "MARK"]
        for pod in pods
    ]


@pytest.mark.parametrize("has_volume", [True, False], ids=["volume", "no volume"])
def test_a_template_is_edited_while_the_run_trains(
    cluster: Cluster,
    run_namespace: str,
    claim: str,
    undisturbed: Undisturbed,
    *,
    has_volume: bool,
) -> None:
    checkpoint = saved(claim) if has_volume else None
    run = begin(cluster, run_namespace, f"edited-{has_volume}".lower(), checkpoint=checkpoint)

    run.patch(template=_template(image="invalid.invalid/no-such-trainer:1"))
    waiting = run.wait_for(
        lambda status: condition_of(status, "Rescaling").get("reason") == "PodCannotStart"
    )
    later = run.wait_for_step(step_of(waiting) + 50)
    run.patch(template=_template(env=[{"name": "MARK", "value": "new"}]))
    run.wait_for(lambda status: causes(status) == ["TemplateChanged"])
    marks = _marks(run)
    status = finish(run, undisturbed)

    assert condition_of(later, "Running")["status"] == "True"
    assert "no-such-trainer" in condition_of(waiting, "Rescaling")["message"]
    assert len([mark for mark in marks if mark == ["new"]]) == 2
    assert causes(status) == ["TemplateChanged"]
    assert lost_steps(status) == 0
    assert status["restarts"]["count"] == 0


def test_a_run_goes_on_in_pods_with_other_processes_and_a_volume(
    cluster: Cluster, run_namespace: str, claim: str, undisturbed: Undisturbed
) -> None:
    run = begin(cluster, run_namespace, "moved")

    run.patch(replicas=1, processesPerReplica=2, checkpoint=saved(claim))
    run.wait_for(lambda status: causes(status) == ["TemplateChanged"])
    kept = run.wait_for(lambda status: status["progress"].get("checkpointStep", 0) > 0)
    status = finish(run, undisturbed)

    (record,) = status["rescales"]
    assert (record["from"], record["to"]) == ("dp2", "dp2")
    assert (record["source"], record["lostSteps"]) == ("Memory", 0)
    assert kept["progress"]["checkpointStep"] >= record["step"]
    assert status["restarts"]["count"] == 0

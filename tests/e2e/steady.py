"""The run that the tests of changes and losses disturb, and what it must come to all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.live_run import LiveRun, condition_of, step_of
from tests.shared.spec import make_spec

if TYPE_CHECKING:
    from demo.kubectl import Cluster
    from tests.e2e.local_run import Undisturbed

TOTAL_STEPS = 3000
"""More than any test needs: a run is deleted once it has shown that it goes on."""
LOSS_TOLERANCE = 1e-4
_STEPS_AFTER = 30


def steady_spec(**changes: Any) -> dict[str, Any]:
    """Return a run of more than a minute, in fp32 at a rate that does not amplify rounding; its
    steps are the same however many follow.
    """
    return make_spec(
        **{
            "model__contextLength": 64,
            "replicas": 2,
            "data__text__path": "/opt/modelscaling/corpus/a*.py",
            "training__tokens": tokens_of(TOTAL_STEPS),
            "training__globalBatchSize": 24,
            "training__learningRate": "3e-4",
            "training__schedule": {"shape": "WarmupStableDecay", "decayFraction": "0"},
            "training__precision": "Float32",
            "training__validateEverySteps": 0,
            # On a busy machine a run looks long enough to be worth compiling.
            "training__compile": "Never",
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


def tokens_of(steps: int) -> int:
    """Return the tokens of so many steps of a steady run."""
    return 24 * 64 * steps


def spec_of_steps(steps: int) -> dict[str, Any]:
    """Return a steady run of so many steps."""
    return steady_spec(training__tokens=tokens_of(steps))


def saved(claim: str) -> dict[str, Any]:
    """Return `spec.checkpoint` for a claim."""
    return {"volume": {"persistentVolumeClaim": {"claimName": claim}}, "everySteps": 100}


def begin(
    cluster: Cluster, namespace: str, name: str, *, step: int = 50, **changes: Any
) -> LiveRun:
    """Return a steady run that has done so many steps."""
    run = LiveRun(cluster=cluster, namespace=namespace, name=name)
    run.apply(steady_spec(**changes))
    run.wait_for_step(step)
    return run


def finish(run: LiveRun, undisturbed: Undisturbed) -> dict[str, Any]:
    """Return the status of a run that has got over what was done to it, and goes on: it has done
    every step once, on the samples and with the loss of the undisturbed one, with the pods that it
    is to have and with its last edit taken note of. No pod is left of it once it is deleted.
    """
    found = run.get()
    spec, edits = found["spec"], found["metadata"]["generation"]
    progress = found["status"]["progress"]
    step = min(progress["step"] + _STEPS_AFTER, progress["totalSteps"])
    status = run.wait_for(
        lambda status: (
            status["observedGeneration"] == edits
            and step_of(status) >= step
            and (is_settled(status, spec["replicas"]) or status["state"] == "Complete")
        )
    )
    wait_for_pods(run, status["group"]["pods"], others=spec.get("elastic", {}).get("spares", 0))
    run.delete()
    run.wait_for_no_pods()

    progress = status["progress"]
    assert progress["sampleDigest"] == undisturbed.at(progress["step"])["sample_digest"]
    assert_followed([progress], undisturbed)
    return status


def has_told(group: dict[str, Any]) -> bool:
    """Whether a group trains, and has told what its change cost, if it is one."""
    is_entered = group.get("recordedAttempt") or not group.get("stoppedMesh")
    return bool(group.get("trained") and is_entered)


def is_settled(status: dict[str, Any], replicas: int) -> bool:
    """Whether a group of so many pods trains, and has told what its change cost."""
    group = status["group"]
    is_rescaling = condition_of(status, "Rescaling")["status"] == "True"
    return bool(
        has_told(group)
        and not is_rescaling
        and not group.get("broken")
        and group["members"] == replicas
        and "loss" in status["progress"]
    )


def wait_for_pods(run: LiveRun, members: list[str], *, others: int = 0) -> None:
    """Wait until the run has these pods, by their UIDs, and so many others."""
    here = (f"--selector=modelscaling.dev/name={run.name}", f"--namespace={run.namespace}")
    for _ in run.cluster.watch("pods", *here, timeout_s=60):
        uids = set(run.pods().values())
        if uids.issuperset(members) and len(uids) == len(members) + others:
            return
    raise AssertionError(
        f"{run.name} has the pods {run.pods()}, expected are {members} and {others} more"
    )


def assert_followed(seen: list[dict[str, Any]], undisturbed: Undisturbed) -> None:
    """Every status that was seen has the loss of the undisturbed run at its step."""
    assert seen
    for progress in seen:
        expected = undisturbed.at(progress["step"])["loss"]
        assert float(progress["loss"]) == pytest.approx(expected, abs=LOSS_TOLERANCE)


def causes(status: dict[str, Any]) -> list[str]:
    """Return why the group changed, the oldest first."""
    return [record["cause"] for record in status.get("rescales", [])]


def lost_steps(status: dict[str, Any]) -> int:
    """Return how many steps were done again in all."""
    return sum(record["lostSteps"] for record in status.get("rescales", []))

"""The operator on a real cluster whose API server refuses, forgets and breaks off."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.in_pods import signal_worker
from tests.e2e.local_run import Undisturbed
from tests.e2e.steady import (
    assert_followed,
    causes,
    finish,
    is_settled,
    lost_steps,
    steady_spec,
    wait_for_pods,
)
from tests.live_run import LiveRun
from tests.operator.conftest import LEASE_DURATION_S, OperatorProcess
from tests.operator.fatal_write import FatalWrite
from tests.operator.faulty_api import FAULTS, DrawnFaults, FinalizerConflicts, faulty_api

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from demo.kubectl import Cluster
    from tests.operator.faulty_api import Choose, FaultyApi

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]


@contextmanager
def serving(
    cluster: Cluster,
    namespace: str,
    tmp_path: Path,
    choose: Choose,
    *,
    lease_duration_s: float = LEASE_DURATION_S,
) -> Iterator[tuple[FaultyApi, OperatorProcess]]:
    """An operator of the namespace behind a faulty API server."""
    with faulty_api(cluster.kubeconfig, tmp_path, choose) as (api, kubeconfig):
        operator = OperatorProcess(
            kubeconfig=kubeconfig,
            namespace=namespace,
            log=tmp_path / "operator.log",
            lease_duration_s=lease_duration_s,
        )
        operator.start()
        try:
            yield api, operator
        finally:
            operator.end(signal.SIGTERM)
            _let_go(cluster, namespace)


def _let_go(cluster: Cluster, namespace: str) -> None:
    """Strip the finalizers of runs that a failed test has left, for which no operator is there."""
    here = f"--namespace={namespace}"
    for run in cluster.get("msc", here).get("items", []):
        cluster.run(
            *("kubectl", "patch", "msc", run["metadata"]["name"], here, "--type=merge"),
            '--patch={"metadata":{"finalizers":null}}',
        )


@pytest.mark.usefixtures("crd")
def test_a_run_is_rescaled_through_an_api_server_that_fails_all_the_time(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    run = LiveRun(cluster=cluster, namespace=namespace, name="harassed")
    faults = DrawnFaults(seed=0)
    with serving(cluster, namespace, tmp_path, faults) as (api, _):
        run.apply(_long_spec(1_000_000))
        run.wait_for_step(100)
        run.kubectl("scale", "msc/harassed", "--replicas=3")
        assert causes(run.wait_for(causes)) == ["ReplicasChanged"]
        run.kubectl("delete", "pod", "harassed-1", "--grace-period=0", "--force")
        # Two attempts to form the group again may be told of in one status.
        run.wait_for(lambda status: len(causes(status)) >= 2)
        run.wait_for(lambda _: set(api.counts) == FAULTS and faults.refused_in_bursts)
        status = finish(run, Undisturbed(_long_spec, tmp_path))

    assert causes(status)[0] == "ReplicasChanged"
    assert lost_steps(status) == 0


@pytest.mark.usefixtures("crd")
def test_a_run_whose_finalizer_is_refused_is_started_and_let_go(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    run = LiveRun(cluster=cluster, namespace=namespace, name="forgotten")
    with serving(cluster, namespace, tmp_path, FinalizerConflicts()) as (api, _):
        run.apply(steady_spec())
        run.wait_for_step(1)
        run.delete()

    assert api.counts["409"] == 3
    assert not run.get()
    assert "kopf lost an event" in (tmp_path / "operator.log").read_text()


@pytest.mark.usefixtures("crd")
def test_a_rescale_is_completed_by_the_next_operator_wherever_one_dies(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    run = LiveRun(cluster=cluster, namespace=namespace, name="orphaned")
    fatal = FatalWrite()
    with serving(cluster, namespace, tmp_path, fatal, lease_duration_s=3) as (_, operator):
        run.apply(_long_spec(1_000_000))
        run.wait_for_state("Running")
        missed = 0
        for number in count(1):
            fatal.arm(operator, number)
            status = _rescale(run, 3 if number % 2 else 2)
            missed = 0 if fatal.disarm() else missed + 1
            if missed == 2:
                break
        run.delete()
        run.wait_for_no_pods()
    undisturbed, last = Undisturbed(_long_spec, tmp_path), status["progress"]

    assert len(fatal.dropped) >= 3
    assert last["sampleDigest"] == undisturbed.at(last["step"])["sample_digest"]
    assert_followed([last], undisturbed)


def _long_spec(steps: int) -> dict[str, Any]:
    """Return a run of small steps, which are the same however many follow."""
    return steady_spec(
        model__contextLength=16,
        training__globalBatchSize=6,
        training__tokens=6 * 16 * steps,
    )


def _rescale(run: LiveRun, replicas: int) -> dict[str, Any]:
    """Scale a run, wait until nothing of the change is left to do, and return the status."""
    generation = run.get()["status"]["group"]["generation"]
    # Only the switch needs a worker that trains, and the operator starts sooner without.
    signal_worker(run, f"{run.name}-0", signal.SIGSTOP)
    run.kubectl("scale", f"msc/{run.name}", f"--replicas={replicas}")
    run.wait_for(lambda status: status["group"]["generation"] > generation)
    signal_worker(run, f"{run.name}-0", signal.SIGCONT)
    status = run.wait_for(
        lambda status: (
            is_settled(status, replicas)
            and status["replicas"] == status["readyReplicas"] == replicas
        )
    )
    wait_for_pods(run, status["group"]["pods"])

    assert lost_steps(status) == 0
    return status

"""The operator on a real cluster whose API server refuses, forgets and breaks off."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.e2e.local_run import train_locally
from tests.e2e.steady import causes, finish, lost_steps, steady_spec
from tests.live_run import LiveRun
from tests.operator.conftest import OperatorProcess
from tests.operator.faulty_api import FAULTS, DrawnFaults, FinalizerConflicts, faulty_api

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from demo.kubectl import Cluster
    from tests.operator.faulty_api import Choose, FaultyApi

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]


@contextmanager
def serving(
    cluster: Cluster, namespace: str, tmp_path: Path, choose: Choose
) -> Iterator[FaultyApi]:
    """An operator of the namespace behind a faulty API server."""
    with faulty_api(cluster.kubeconfig, tmp_path, choose) as (api, kubeconfig):
        operator = OperatorProcess(
            kubeconfig=kubeconfig,
            namespace=namespace,
            log=tmp_path / "operator.log",
            lease_duration_s=30,
        )
        operator.start()
        try:
            yield api
        finally:
            operator.end(signal.SIGTERM)


@pytest.mark.usefixtures("crd")
def test_a_run_is_rescaled_through_an_api_server_that_fails_all_the_time(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    undisturbed = train_locally(steady_spec(), tmp_path)
    run = LiveRun(cluster=cluster, namespace=namespace, name="harassed")
    faults = DrawnFaults(seed=0)
    with serving(cluster, namespace, tmp_path, faults) as api:
        run.apply(steady_spec())
        run.wait_for_step(100)
        run.kubectl("scale", "msc/harassed", "--replicas=3")
        run.wait_for(lambda status: len(causes(status)) == 1)
        run.kubectl("delete", "pod", "harassed-1", "--grace-period=0", "--force")
        status = finish(run, undisturbed)

    assert causes(status)[0] == "ReplicasChanged"
    assert lost_steps(status) == 0
    assert set(api.counts) == FAULTS
    assert faults.refused_in_bursts > 0


@pytest.mark.usefixtures("crd")
def test_a_run_whose_finalizer_is_refused_is_started_and_let_go(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    run = LiveRun(cluster=cluster, namespace=namespace, name="forgotten")
    with serving(cluster, namespace, tmp_path, FinalizerConflicts()) as api:
        run.apply(steady_spec())
        run.wait_for_step(1)
        run.delete()

    assert api.counts["409"] == 3
    assert not run.get()
    assert "kopf lost an event" in (tmp_path / "operator.log").read_text()

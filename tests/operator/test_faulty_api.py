"""The operator on a real cluster whose API server refuses, forgets and breaks off."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.e2e.local_run import train_locally
from tests.e2e.steady import causes, finish, lost_steps, steady_spec
from tests.live_run import LiveRun
from tests.operator.conftest import OperatorProcess
from tests.operator.faulty_api import FAULTS, faulty_api

if TYPE_CHECKING:
    from pathlib import Path

    from demo.kubectl import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]


@pytest.mark.usefixtures("crd")
def test_a_run_is_rescaled_through_an_api_server_that_fails_all_the_time(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    undisturbed = train_locally(steady_spec(), tmp_path)
    run = LiveRun(cluster=cluster, namespace=namespace, name="harassed")
    with faulty_api(cluster.kubeconfig, tmp_path, seed=0) as (api, kubeconfig):
        operator = OperatorProcess(
            kubeconfig=kubeconfig,
            namespace=namespace,
            log=tmp_path / "operator.log",
            lease_duration_s=30,
        )
        operator.start()
        try:
            run.apply(steady_spec())
            run.wait_for_step(100)
            run.kubectl("scale", "msc/harassed", "--replicas=3")
            run.wait_for(lambda status: len(causes(status)) == 1)
            run.kubectl("delete", "pod", "harassed-1", "--grace-period=0", "--force")
            status = finish(run, undisturbed)
        finally:
            operator.end(signal.SIGTERM)

    assert causes(status)[0] == "ReplicasChanged"
    assert lost_steps(status) == 0
    assert set(api.counts) == FAULTS

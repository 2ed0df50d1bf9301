"""The operator's loop with real agents and workers: each change and loss costs what it may."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.operator.local_cluster import LocalCluster
from tests.shared.spec import make_spec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelscaling.api.status import ModelScalingStatus

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

_SHARDED = {"strategy": "Custom", "dataReplicate": 1}


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, Any]:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 4000)
    return make_spec(
        replicas=2,
        data__text__path=str(text),
        model__layers=1,
        model__hiddenSize=32,
        training__tokens="640M",
        training__globalBatchSize=6,
        training__precision="Float32",
        training__compile="Never",
        training__validateEverySteps=0,
        parallelism=_SHARDED,
        elastic={"minReplicas": 1},
    )


def has_changed(times: int) -> Callable[[ModelScalingStatus], bool]:
    return lambda status: len(status.rescales) >= times


def is_past(step: int) -> Callable[[ModelScalingStatus], bool]:
    return lambda status: status.progress is not None and status.progress.step >= step


async def test_a_run_is_scaled_and_laid_out_anew_and_loses_a_worker_and_a_node(
    spec: dict[str, Any], tmp_path: Path
) -> None:
    async with LocalCluster(directory=tmp_path, spec=spec) as cluster:
        await cluster.wait_for(is_past(20))

        cluster.edit(replicas=3)
        await cluster.wait_for(has_changed(1))
        cluster.edit(replicas=2, parallelism={"strategy": "Custom"})
        await cluster.wait_for(has_changed(2))
        await cluster.wait_for(lambda _: sorted(cluster.pods) == ["tiny-0", "tiny-1"])
        cluster.pods["tiny-1"].kill_worker()
        await cluster.wait_for(has_changed(3))
        cluster.pods["tiny-0"].kill(signal.SIGSTOP)
        status = await cluster.wait_for(has_changed(4))

        assert "tiny-0" not in cluster.pods
        assert cluster.births == 4

    changes = [(r.cause, r.from_, r.to, r.source) for r in status.rescales]
    assert changes == [
        ("ReplicasChanged", "fsdp2", "fsdp3", "Memory"),
        ("ReplicasChanged", "fsdp3", "dp2", "Memory"),
        ("WorkerReplaced", "dp2", "dp2", "Memory"),
        ("NodeLost", "dp2", "single", "Memory"),
    ]
    assert sum(record.lost_steps for record in status.rescales) == 0
    assert status.restarts.count == 1

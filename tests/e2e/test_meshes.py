"""One ModelScaling on five meshes over four pods: one loss curve, five plans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.local_run import train_locally
from tests.live_run import LiveRun
from tests.shared.spec import make_spec

if TYPE_CHECKING:
    from demo.kubectl import Cluster

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(400),
    pytest.mark.usefixtures("operator"),
]

_STEPS = 40
_LOSS_TOLERANCE = 1e-4

MESHES = [
    pytest.param({"dataReplicate": 4}, "dp4", id="copies"),
    pytest.param({"dataReplicate": 1}, "fsdp4", id="fully sharded"),
    pytest.param({"dataReplicate": 2, "dataShard": 2}, "dp2×fsdp2", id="hybrid"),
    pytest.param(
        {"tensor": 2, "pipeline": 2, "tensorPlacement": "AcrossPods"}, "pp2×tp2", id="cut model"
    ),
    pytest.param({"context": 2, "dataReplicate": 2}, "dp2×cp2", id="cut samples"),
]


def _spec(axes: dict[str, Any]) -> dict[str, Any]:
    return make_spec(
        replicas=4,
        parallelism={"strategy": "Custom", **axes},
        data__text__path="/opt/modelscaling/corpus/a*.py",
        training__tokens=8 * 64 * _STEPS,
        training__learningRate="3e-4",
        training__precision="Float32",
        training__validateEverySteps=20,
        # A worker takes as many threads as its pod has processors: here all share a machine.
        template={
            "spec": {
                "containers": [
                    {"name": "trainer", "env": [{"name": "OMP_NUM_THREADS", "value": "1"}]}
                ]
            }
        },
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The steps of the run in one process on this machine."""
    return train_locally(_spec({}), tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize(("axes", "mesh"), MESHES)
def test_a_mesh_is_planned_and_trains_as_one_process_does(
    cluster: Cluster,
    run_namespace: str,
    alone: list[dict[str, Any]],
    axes: dict[str, Any],
    mesh: str,
) -> None:
    run = LiveRun(cluster=cluster, namespace=run_namespace, name=mesh.replace("×", "-"))
    run.apply(_spec(axes))

    seen: list[dict[str, Any]] = []
    for status in run.statuses(timeout_s=240):
        if "loss" in status.get("progress", {}):
            seen.append(status["progress"])
        if status.get("state") in {"Complete", "Failed"}:
            break
    row = run.kubectl("get", "msc", run.name, "--no-headers").split()
    run.delete()

    assert row[1:5] == ["Complete", row[2], "4", mesh]
    assert status["plan"]["estimatedMemoryBytes"] > 0
    assert seen[-1]["step"] == _STEPS == len(alone)
    assert seen[-1]["sampleDigest"] == alone[-1]["sample_digest"]
    assert float(seen[-1]["validationLoss"]) == pytest.approx(
        alone[-1]["validation_loss"], abs=_LOSS_TOLERANCE
    )
    for progress in seen:
        expected = alone[progress["step"] - 1]["loss"]
        assert float(progress["loss"]) == pytest.approx(expected, abs=_LOSS_TOLERANCE)

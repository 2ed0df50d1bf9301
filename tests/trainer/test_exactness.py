"""Every mesh trains as one process does: the same losses, gradient norms and samples.

Over 50 steps in float32 at a learning rate of 3e-4: a larger one amplifies rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from modelscaling.mesh import Mesh
from modelscaling.micro_batch import legal_micro_batch_sizes
from tests.trainer.exactness import assert_trained_as_alone, train_on
from tests.trainer.runs import make_run, write_text

if TYPE_CHECKING:
    from pathlib import Path

    from modelscaling.configuration import RunConfiguration
    from tests.trainer.workers import Result

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

AGREEMENT = 1e-4
"""How far losses may lie apart, nats."""

MESHES = [
    pytest.param(Mesh(dataReplicate=4), id="dp4"),
    pytest.param(Mesh(dataShard=4), id="fsdp4"),
    pytest.param(Mesh(dataReplicate=2, dataShard=2), id="hsdp2x2"),
    pytest.param(Mesh(tensor=2), id="tp2"),
    pytest.param(Mesh(tensor=4), id="tp4 with 2 key and value heads"),
    pytest.param(Mesh(pipeline=2), id="pp2"),
    pytest.param(Mesh(pipeline=4), id="pp4"),
    pytest.param(Mesh(pipeline=2, stagesPerProcess=2), id="pp2 interleaved"),
    pytest.param(Mesh(context=2), id="cp2"),
    pytest.param(Mesh(tensor=2, pipeline=2), id="tp2 x pp2"),
    pytest.param(Mesh(dataShard=2, tensor=2), id="fsdp2 x tp2"),
    pytest.param(Mesh(dataShard=2, pipeline=2), id="fsdp2 x pp2"),
    pytest.param(Mesh(dataReplicate=2, context=2), id="dp2 x cp2"),
    pytest.param(Mesh(dataShard=2, tensor=2, pipeline=2), id="fsdp2 x tp2 x pp2"),
    pytest.param(Mesh(dataShard=3), id="fsdp3 with dimensions that do not divide by 3"),
]


def _run(text: Path, **changes: Any) -> RunConfiguration:
    return make_run(text, model__layers=4, training__validate_every_steps=25, **changes)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    [result] = train_on(Mesh(), _run(text), tmp_path_factory.mktemp("scratch"))
    return result


def _largest(mesh: Mesh) -> int:
    """Return the largest legal micro batch: fewer messages, and faster on few cores."""
    return legal_micro_batch_sizes(12 // mesh.data_parallel, mesh)[-1]


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_trains_as_one_process_does(
    mesh: Mesh, alone: Result, text: Path, tmp_path: Path
) -> None:
    run = _run(text, training__micro_batch_size=_largest(mesh))
    together = train_on(mesh, run, tmp_path)

    assert_trained_as_alone(together, alone, mesh, steps=50, loss_within=AGREEMENT)
    for result in together:
        assert alone.validation_losses[24:] == pytest.approx(
            result.validation_losses[24:], abs=AGREEMENT
        )

"""What a family of models does differently trains on a mesh as in one process."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

from modelscaling.mesh import Mesh
from tests.trainer.exactness import assert_trained_as_alone, train_on
from tests.trainer.families import FAMILIES
from tests.trainer.runs import make_run, write_text

if TYPE_CHECKING:
    from pathlib import Path

    from tests.trainer.workers import Result

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

STEPS = 5
AGREEMENT = 1e-5
"""How far losses may lie apart, nats; float32, 3e-4, 5 steps."""


def _train(run_changes: dict[str, Any], mesh: Mesh, scratch: Path) -> list[Result]:
    run = make_run(write_text(scratch / "data"), model__layers=4, **run_changes)
    return train_on(mesh, run, scratch, stop_at_step=STEPS)


@pytest.mark.parametrize(
    ("family", "mesh", "changes"),
    [
        pytest.param("qwen2.5", Mesh(tensor=2), {}, id="biases on tp2"),
        pytest.param("qwen2.5", Mesh(tensor=4), {}, id="biases of shared heads on tp4"),
        pytest.param("olmo-2", Mesh(tensor=2), {}, id="norms on tp2"),
        pytest.param("olmo-2", Mesh(tensor=4), {}, id="norms of shared heads on tp4"),
        pytest.param("olmo-2", Mesh(dataShard=2, tensor=2), {}, id="norms on fsdp2 x tp2"),
        pytest.param(
            "olmo-2",
            Mesh(tensor=2),
            {"training__activation_checkpointing": "Selective"},
            id="norms on tp2, computed again in the backward pass",
        ),
        pytest.param("olmo-2", Mesh(pipeline=2), {}, id="norms on pp2"),
        pytest.param("mistral", Mesh(context=2), {}, id="a window on cp2"),
        pytest.param("llama-3.1", Mesh(context=2), {}, id="scaled positions on cp2"),
    ],
)
def test_a_family_on_a_mesh_trains_as_in_one_process(
    family: str, mesh: Mesh, changes: dict[str, Any], tmp_path: Path
) -> None:
    shape = {
        f"model__{name}": asdict(value) if name == "rope_scaling" else value
        for name, value in FAMILIES[family].items()
    }
    [alone] = _train(shape, Mesh(), tmp_path)
    together = _train(shape | changes, mesh, tmp_path)

    assert_trained_as_alone(
        together, alone, mesh, steps=STEPS, loss_within=AGREEMENT, norm_within=1e-4
    )

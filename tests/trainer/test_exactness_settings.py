"""Settings that change how a mesh computes, and not what it learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from modelscaling.mesh import Mesh
from tests.trainer.exactness import assert_trained_as_alone, train_on
from tests.trainer.runs import make_run, write_text

if TYPE_CHECKING:
    from pathlib import Path

    from tests.trainer.workers import Result

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

STEPS = 5
AGREEMENT = 1e-5
"""How far losses may lie apart, nats; float32, 3e-4, 5 steps."""
BFLOAT16_AGREEMENT = 0.02
"""The same with products in bfloat16, whose 8 bits of mantissa each mesh rounds in another order:
0.4 % of a loss of 5.5 nats."""

BFLOAT16 = {"training__precision": "BFloat16"}
FSDP2, TP2, PP2 = Mesh(dataShard=2), Mesh(tensor=2), Mesh(pipeline=2)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("data"))


def _train(
    text: Path, scratch: Path, mesh: Mesh, *, changes: dict[str, Any], **options: Any
) -> list[Result]:
    run = make_run(text, model__layers=4, **changes)
    return train_on(mesh, run, scratch, stop_at_step=STEPS, **options)


@pytest.mark.parametrize(
    ("mesh", "changes", "ignored"),
    [
        pytest.param(
            Mesh(pipeline=2, tensor=2),
            {"model__tied_embeddings": False},
            (),
            id="untied embeddings on pp2 x tp2",
        ),
        pytest.param(
            FSDP2,
            {"training__activation_checkpointing": "Full"},
            ("training__activation_checkpointing",),
            id="fsdp2 with full activation checkpointing",
        ),
        pytest.param(
            FSDP2,
            {"training__activation_checkpointing": "Selective"},
            ("training__activation_checkpointing",),
            id="fsdp2 with selective activation checkpointing",
        ),
        pytest.param(
            Mesh(dataReplicate=2, dataShard=2),
            {"training__micro_batch_size": 1},
            ("training__micro_batch_size",),
            id="hsdp2x2 with three micro batches",
        ),
        pytest.param(
            PP2,
            {"training__micro_batch_size": 2},
            ("training__micro_batch_size",),
            id="pp2 with six micro batches",
        ),
        pytest.param(
            FSDP2,
            {"training__compile": "Always"},
            ("training__compile",),
            id="fsdp2 compiled",
        ),
        pytest.param(
            PP2,
            {"training__compile": "Always"},
            ("training__compile",),
            id="pp2 compiled",
        ),
    ],
)
def test_a_setting_on_a_mesh_trains_as_one_process_does_without_it(
    mesh: Mesh, changes: dict[str, Any], ignored: tuple[str, ...], text: Path, tmp_path: Path
) -> None:
    plain = {name: value for name, value in changes.items() if name not in ignored}
    [alone] = _train(text, tmp_path, Mesh(), changes=plain)
    together = _train(text, tmp_path, mesh, changes=changes)

    assert_trained_as_alone(together, alone, mesh, steps=STEPS, loss_within=AGREEMENT)


@pytest.fixture(scope="module")
def alone_in_bfloat16(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    scratch = tmp_path_factory.mktemp("scratch")
    [exact] = _train(text, scratch, Mesh(), changes={})
    [rounded] = _train(text, scratch, Mesh(), changes=BFLOAT16, emulates_bfloat16=True)
    assert exact.losses != rounded.losses  # so bfloat16 it was
    return rounded


@pytest.mark.parametrize("mesh", [FSDP2, TP2], ids=["fsdp2", "tp2"])
def test_bfloat16_on_a_mesh_is_near_bfloat16_in_one_process(
    mesh: Mesh, alone_in_bfloat16: Result, text: Path, tmp_path: Path
) -> None:
    together = _train(text, tmp_path, mesh, changes=BFLOAT16, emulates_bfloat16=True)

    assert [(result.outcome, result.message) for result in together] == [
        ("Complete", "")
    ] * mesh.size
    for result in together:
        assert alone_in_bfloat16.losses == pytest.approx(result.losses, abs=BFLOAT16_AGREEMENT)
        assert alone_in_bfloat16.digests == result.digests

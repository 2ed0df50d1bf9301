"""What a process says it is doing, which tells whoever watches it what may take long."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from modelscaling.mesh import Mesh
from modelscaling_trainer.group import Group
from modelscaling_trainer.request import Requests
from modelscaling_trainer.run import Run
from tests.trainer.runs import make_run, write_text

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process  # a group meets by a port


def test_validating_compiling_and_saving_are_told_from_training(tmp_path: Path) -> None:
    configuration = make_run(
        write_text(tmp_path / "data"),
        training__compile="Always",
        training__validate_every_steps=2,
        training__total_steps=3,
        checkpoint={"every_steps": 100, "keep": 1},
    )
    told: list[str] = []
    run = Run(
        configuration,
        device=torch.device("cpu"),
        scratch=tmp_path / "scratch",
        checkpoint_directory=tmp_path / "checkpoints",
    )

    # What is compiled is run without a compiler, which would take a minute.
    with torch.compiler.set_stance("force_eager"):
        run.train(
            Group(
                generation=1,
                mesh=Mesh(),
                rank=0,
                local_rank=0,
                store_host="127.0.0.1",
                store_port=None,
            ),
            requests=Requests(),
            on_store_port=lambda _: None,
            on_progress=lambda progress: told.append(f"step {progress.step}"),
            on_phase=told.append,
        )

    while_training = told[told.index("Training") :]
    assert while_training == [
        *("Training", "Compiling", "step 1", "Training"),
        *("Validating", "Training", "step 2"),
        *("Validating", "Training", "Saving", "step 3"),
    ]

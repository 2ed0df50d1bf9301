from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch

from modelscaling_trainer import checkpoint_writer
from modelscaling_trainer.checkpoint import find_newest, write
from modelscaling_trainer.checkpoint_writer import CheckpointWriter
from modelscaling_trainer.decoder import Decoder
from modelscaling_trainer.errors import CheckpointError
from modelscaling_trainer.optimizer import AdamW
from modelscaling_trainer.state import Counters, TrainingState
from tests.trainer.runs import make_run

if TYPE_CHECKING:
    from pathlib import Path

RUN = make_run("unused")


def make_state(step: int = 0) -> TrainingState:
    model = Decoder(RUN.model, compute_dtype=torch.float32)
    state = TrainingState(model, AdamW(model.parameters(), RUN.optimizer))
    state.initialise(seed=0)
    with state.changing(Counters(step=step)):
        pass
    return state


def make_writer(directory: Path, keep: int = 2) -> CheckpointWriter:
    return CheckpointWriter(directory, keep=keep, shape=RUN.model)


def test_the_copy_is_of_the_moment_of_saving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write = threading.Event()

    def late(*arguments: Any) -> None:
        assert may_write.wait(30)
        write(*arguments)

    monkeypatch.setattr(checkpoint_writer, "write", late)
    state, writer = make_state(step=5), make_writer(tmp_path)
    saved = {name: tensor.clone() for name, tensor in state.tensors().items()}
    writer.save(state)
    with torch.no_grad(), state.changing(Counters(step=6)):
        for tensor in state.tensors().values():
            tensor.add_(1.0)
    may_write.set()
    writer.wait()

    found = find_newest(tmp_path)
    assert found is not None
    assert found.counters.step == writer.written_step == 5
    loaded = {name: torch.empty_like(tensor) for name, tensor in saved.items()}
    found.load(loaded)
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


def test_an_error_of_the_background_comes_up_once_and_saving_works_again(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.write_text("in the way")
    state, writer = make_state(step=1), make_writer(directory)
    writer.save(state)
    with pytest.raises(CheckpointError, match="could not write a checkpoint below"):
        writer.save(state)
    directory.unlink()
    writer.save(state)
    writer.wait()

    assert writer.written_step == 1


def test_old_checkpoints_go_as_new_ones_come(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, keep=2)
    for step in (1, 2, 3):
        writer.save(make_state(step))
    writer.wait()

    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]

"""The best checkpoint stays, whatever else is removed, and is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from modelscaling.growth.lineage import Lineage
from modelscaling.growth.mode import GrowthMode
from modelscaling.validation_history import Validation, ValidationHistory
from modelscaling_trainer.checkpoint import catalog
from modelscaling_trainer.checkpoint.attempt import Attempt
from modelscaling_trainer.errors import CheckpointError
from modelscaling_trainer.state import Counters
from tests.trainer.checkpoint_writers import STATE, names_in
from tests.trainer.checkpoints import SHAPE, SINGLE, make_shards, make_writer

if TYPE_CHECKING:
    from pathlib import Path

    from modelscaling_trainer.checkpoint.writer import CheckpointWriter

LOSSES = {1: 3.0, 2: 2.0, 3: 2.5, 4: 2.6, 5: 2.7}
"""Validation losses by step; each step is saved."""


def save_all(writer: CheckpointWriter, losses: dict[int, float]) -> None:
    """Save the state of each step, which knows the validations up to it."""
    history = ValidationHistory()
    for step, loss in losses.items():
        history = history.after(Validation(step=step, loss=loss, training_loss=loss))
        save(writer, step, history)


def save(writer: CheckpointWriter, step: int, history: ValidationHistory) -> None:
    counters = Counters(step=step, validations=history)
    writer.save(make_shards(STATE, SINGLE, 0), counters, learning_rate=3e-4)
    writer.wait()


@pytest.mark.parametrize(
    ("keeps_best", "kept"),
    [(True, ["step-00000002", "step-00000005"]), (False, ["step-00000005"])],
)
def test_the_best_checkpoint_outlives_newer_ones_where_it_is_to(
    tmp_path: Path, kept: list[str], *, keeps_best: bool
) -> None:
    save_all(make_writer(tmp_path, keep=1, keeps_best=keeps_best), LOSSES)

    assert names_in(tmp_path) == kept


def test_a_best_checkpoint_that_is_no_longer_the_best_goes(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, keep=1, keeps_best=True)
    save_all(writer, LOSSES | {6: 1.5, 7: 1.6})

    assert names_in(tmp_path) == ["step-00000006", "step-00000007"]
    assert writer.best == Validation(step=6, loss=1.5, training_loss=1.5)


def test_the_best_before_stays_until_a_better_one_is_on_the_volume(tmp_path: Path) -> None:
    history = ValidationHistory()
    writer = make_writer(tmp_path, keep=1, keeps_best=True)
    for step, loss, is_saved in ((1, 3.0, True), (2, 2.0, False), (3, 2.5, True)):
        history = history.after(Validation(step=step, loss=loss, training_loss=loss))
        if is_saved:
            save(writer, step, history)

    assert names_in(tmp_path) == ["step-00000001", "step-00000003"]
    assert writer.best is not None
    assert writer.best.step == 1


def test_a_new_group_knows_the_best_checkpoint_before_it_saves(tmp_path: Path) -> None:
    save_all(make_writer(tmp_path, keep=1, keeps_best=True), LOSSES)
    writer = make_writer(tmp_path, keep=1, keeps_best=True, generation=2)
    writer.finish()

    assert writer.best is not None
    assert writer.best.step == 2


def test_without_early_stopping_there_is_no_best_checkpoint(tmp_path: Path) -> None:
    writer = make_writer(tmp_path)
    save_all(writer, LOSSES)

    assert writer.best is None


def test_a_best_checkpoint_that_is_torn_is_none(tmp_path: Path) -> None:
    save_all(make_writer(tmp_path, keeps_best=True), LOSSES)
    (tmp_path / "step-00000002" / "part-00000.safetensors").unlink()

    assert catalog.find_best(tmp_path) == Validation(step=1, loss=3.0, training_loss=3.0)


@pytest.mark.parametrize("keeps_best", [True, False])
def test_what_was_saved_before_growth_stays_until_the_grown_model_has_a_checkpoint(
    tmp_path: Path, *, keeps_best: bool
) -> None:
    save_all(make_writer(tmp_path, keep=1, keeps_best=keeps_best), {1: 3.0, 2: 2.0, 3: 2.5})
    lineage = Lineage().grown(SHAPE, step=3, mode=GrowthMode.STACK)
    grown = make_writer(tmp_path, keep=1, keeps_best=keeps_best, generation=2, lineage=lineage)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attempt, "publish", fail)
        grown.save(make_shards(STATE, SINGLE, 0), Counters(step=4), learning_rate=3e-4)
        with pytest.raises(CheckpointError):
            grown.wait()
    kept = ["step-00000002", "step-00000003"] if keeps_best else ["step-00000003"]
    assert names_in(tmp_path) == kept
    # As a group does that trains the model before again, or forms anew.
    make_writer(tmp_path, keep=1, keeps_best=keeps_best, generation=3).finish()
    assert names_in(tmp_path) == kept

    grown = make_writer(tmp_path, keep=1, keeps_best=keeps_best, generation=4, lineage=lineage)
    save(grown, 5, ValidationHistory())

    assert names_in(tmp_path) == ["step-00000005"]
    assert grown.best is None


def fail(*_: object, **__: object) -> None:
    raise OSError("no room")

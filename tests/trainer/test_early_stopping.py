"""Runs on a text that they learn by heart, in real processes: stopped early at their best."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from modelscaling.advice import find_overfitting
from modelscaling_trainer.checkpoint import catalog
from tests.trainer.runs import make_run, write_text
from tests.trainer.workers import Result, Worker, results, train_together

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelscaling.configuration import RunConfiguration

    Start = Callable[..., list[Worker]]

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

EVERY = 10
PATIENCE = 5


@pytest.fixture
def configuration(tmp_path: Path) -> RunConfiguration:
    """So few words in no order that a model learns to spell them, and then the order by heart."""
    return make_run(
        write_text(tmp_path / "data", words=130),
        data__validation_fraction=0.5,
        training__total_steps=400,
        training__validate_every_steps=EVERY,
        training__early_stopping={"patience": PATIENCE, "min_delta": 0.0},
        optimizer__learning_rate=1e-2,
        optimizer__minimum_learning_rate=1e-3,
        optimizer__decay_steps=395,
        checkpoint={"every_steps": 11, "keep": 1},
    )


@pytest.fixture
def start_saving(start_workers: Start, tmp_path: Path) -> Start:
    """Start workers that save to one directory."""
    return partial(start_workers, checkpoint_directory=tmp_path / "run")


def train(workers: list[Worker], *, generation: int = 1) -> list[Result]:
    train_together(workers, generation=generation)
    return results(workers)


def check_end(result: Result, directory: Path) -> int:
    """Check that a run has ended early with its best checkpoint; return its last step."""
    last = result.progress[-1]
    best = last.validations.best
    assert result.outcome == "Complete"
    assert last.is_stopped_early
    assert best is not None
    assert best.step > EVERY
    assert last.step == best.step + PATIENCE * EVERY < last.total_steps
    assert last.best_checkpoint == best
    assert sorted(path.name for path in directory.glob("step-*")) == [
        f"step-{step:08d}" for step in (best.step, last.step)
    ]
    kept = catalog.find(directory, best.step)
    assert kept is not None
    assert kept.counters.validations.best == best
    return last.step


def test_a_run_that_learns_by_heart_overfits_and_stops_early_with_its_best_checkpoint(
    configuration: RunConfiguration, tmp_path: Path, start_saving: Start
) -> None:
    together = train(start_saving(2, configuration))

    end = check_end(together[0], tmp_path / "run")
    assert [result.progress[-1].step for result in together] == [end] * 2
    assert [result.progress[-1].is_stopped_early for result in together] == [True] * 2
    first, last = together[0].progress[0], together[0].progress[-1]
    assert not first.is_stopped_early
    assert find_overfitting(last.validations) is not None
    assert last.epoch_tokens
    assert last.epochs == pytest.approx(end * 12 * 32 / last.epoch_tokens)


def test_a_run_that_has_stopped_early_is_complete_when_it_starts_again(
    configuration: RunConfiguration, tmp_path: Path, start_saving: Start
) -> None:
    end = check_end(train(start_saving(1, configuration))[0], tmp_path / "run")
    [again] = train(start_saving(1, configuration))

    assert check_end(again, tmp_path / "run") == end
    assert [progress.step for progress in again.progress] == [end]


def test_an_interrupted_run_goes_on_waiting_where_it_was(
    configuration: RunConfiguration, tmp_path: Path, start_saving: Start
) -> None:
    undisturbed = train(start_saving(1, configuration))[0]
    end = check_end(undisturbed, tmp_path / "run")
    for path in (tmp_path / "run").iterdir():
        path.rename(tmp_path / f"undisturbed-{path.name}")

    impatient = end - 2 * EVERY
    train(start_saving(1, configuration, stop_at_step=impatient))
    [resumed] = train(start_saving(1, configuration))

    assert resumed.progress[0].step == impatient + 1
    assert resumed.progress[0].validations.without_improvement == PATIENCE - 2
    assert check_end(resumed, tmp_path / "run") == end
    assert resumed.progress[-1].validations == undisturbed.progress[-1].validations


def test_a_group_that_re_forms_remembers_the_validations_of_the_one_before(
    configuration: RunConfiguration, tmp_path: Path, start_saving: Start
) -> None:
    workers = start_saving(2, configuration)
    workers[0].ask("Reform", after_step=2 * EVERY + 2)
    before = train(workers)
    after = train(workers[1:], generation=2)

    assert [result.outcome for result in before] == ["Stopped"] * 2
    known = before[1].progress[-1].validations
    assert len(known.recent) > 1
    assert after[0].progress[0].validations.recent[: len(known.recent)] == known.recent
    check_end(after[0], tmp_path / "run")

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest

from modelscaling.exit_code import ExitCode
from modelscaling.local_run import LocalRun, LocalStage
from modelscaling.mesh import Mesh
from modelscaling.protocol import Failure
from modelscaling_trainer.local_report import LocalReport
from modelscaling_trainer.rejected_growth import reject_growth
from tests.shared.validations import OVERFITTING
from tests.trainer.agent_builders import make_configuration, make_progress, make_rejection

if TYPE_CHECKING:
    from pathlib import Path

    from modelscaling.configuration import RunConfiguration


class Terminal(io.StringIO):
    """Standard error; a terminal if it says so."""

    def __init__(self, *, is_terminal: bool = False) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_run(
    *configurations: RunConfiguration,
    output: Path | None = None,
    stop_at_step: int | None = None,
    is_json: bool = False,
) -> LocalRun:
    """A run that is configured one way after another."""
    stages = configurations or (make_configuration(training__validateEverySteps=50),)
    return LocalRun(
        name="tiny",
        stages=tuple(
            LocalStage(tokens=number * 16_000, configuration=stage, mesh=Mesh(dataReplicate=2))
            for number, stage in enumerate(stages)
        ),
        output=output,
        stop_at_step=stop_at_step,
        is_json=is_json,
    )


class Shown:
    """A report and what it has written."""

    def __init__(
        self, *configurations: RunConfiguration, is_terminal: bool = False, **run: Any
    ) -> None:
        self.run = make_run(*configurations, **run)
        self.output = io.StringIO()
        self.terminal = Terminal(is_terminal=is_terminal)
        self.clock = Clock()
        self.report = LocalReport(
            self.run,
            output=self.output,
            terminal=self.terminal,
            clock=self.clock,
        )

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.output.getvalue().splitlines()]

    @property
    def lines(self) -> list[str]:
        return self.terminal.getvalue().splitlines()


def test_a_step_is_one_object_of_json() -> None:
    shown = Shown(is_json=True)

    shown.report.on_progress(make_progress(step=7))

    assert shown.objects == [
        {
            "step": 7,
            "loss": 5.25,
            "tokens": 3584,
            "sample_digest": "c0ffee",
            "step_seconds": 0.25,
            "tokens_per_second": 2048.0,
        }
    ]
    assert shown.lines == []


@pytest.mark.parametrize(
    ("step", "stop_at_step", "is_measured"),
    [
        pytest.param(50, None, True, id="every 50 steps"),
        pytest.param(51, None, False, id="repeated in the step after"),
        pytest.param(125, None, True, id="at the end"),
        pytest.param(51, 51, True, id="at an early end"),
    ],
)
def test_the_validation_loss_is_written_where_it_is_measured(
    step: int, stop_at_step: int | None, *, is_measured: bool
) -> None:
    shown = Shown(is_json=True, stop_at_step=stop_at_step)

    shown.report.on_progress(make_progress(step=step, validation_loss=4.5))

    assert shown.objects[0].get("validation_loss") == (4.5 if is_measured else None)


def test_the_last_object_says_how_it_ended(tmp_path: Path) -> None:
    for step in (50, 100, 125):
        (tmp_path / f"step-{step:08d}").mkdir()
    (tmp_path / ".writing-step-00000200-1").mkdir()
    shown = Shown(is_json=True, output=tmp_path)
    shown.report.on_progress(make_progress(step=125))

    shown.report.done()

    assert shown.objects[-1] == {
        "done": True,
        "step": 125,
        "parameters": 98_624,
        "mesh": "dp2",
        "checkpoint": str(tmp_path / "step-00000125"),
    }


def test_a_run_that_was_done_before_says_its_step(tmp_path: Path) -> None:
    (tmp_path / "step-00000125").mkdir()
    shown = Shown(is_json=True, output=tmp_path)

    shown.report.done()

    assert shown.objects[-1]["step"] == 125


def test_without_an_output_directory_nothing_is_saved_and_it_says_so() -> None:
    shown = Shown()

    assert shown.lines == [
        "tiny: 98.6k parameters, 125 steps, mesh dp2; nothing is saved (give --output DIR to save)"
    ]


def test_a_terminal_has_one_line_that_changes() -> None:
    shown = Shown(is_terminal=True)
    shown.report.on_progress(make_progress(step=1))
    shown.report.on_progress(make_progress(step=2))

    last = shown.terminal.getvalue().rpartition("\r")[2]
    assert "step 2/125  loss 5.2500  2,048 tokens/s  0:00:31 left" in last
    assert shown.terminal.getvalue().count("\n") == 1


def test_elsewhere_a_line_comes_every_few_seconds() -> None:
    shown = Shown()
    for step in range(1, 5):
        shown.report.on_progress(make_progress(step=step))
        shown.clock.now += 2.0

    steps = [line.split()[1] for line in shown.lines if line.startswith("step")]
    assert steps == ["1/125", "4/125"]


def test_overfitting_is_told_once_with_the_best_step() -> None:
    shown = Shown(is_json=True)
    for step in (60, 61):
        shown.report.on_progress(make_progress(step=step, validations=OVERFITTING))

    (line,) = shown.lines
    assert line.startswith("warning: overfitting: The validation loss was best at step 20")


def stop_early(directory: Path, **run: Any) -> Shown:
    """Show a run that stops early after its best step, 20."""
    for step in (20, 60):
        (directory / f"step-{step:08d}").mkdir()
    shown = Shown(
        make_configuration(
            training__earlyStopping={"patience": 4}, checkpoint={"volume": {"emptyDir": {}}}
        ),
        output=directory,
        **run,
    )
    progress = make_progress(
        step=60,
        validations=OVERFITTING,
        is_stopped_early=True,
        best_checkpoint=OVERFITTING.best,
    )
    shown.report.on_progress(progress)
    shown.report.done()
    return shown


def test_an_early_stop_says_why_and_where_the_best_checkpoint_is(tmp_path: Path) -> None:
    shown = stop_early(tmp_path)

    assert shown.lines[-1] == (
        "stopped early: 4 validations without improvement; the best is step 20 with a validation "
        f"loss of 2.0000, saved in {tmp_path / 'step-00000020'}"
    )


def test_the_last_object_of_a_run_that_stopped_early_names_the_best_checkpoint(
    tmp_path: Path,
) -> None:
    last = stop_early(tmp_path, is_json=True).objects[-1]

    assert (last["done"], last["step"]) == (True, 60)
    assert last["reason"] == "EarlyStopped"
    assert last["checkpoint"] == str(tmp_path / "step-00000060")
    assert last["best_checkpoint"] == str(tmp_path / "step-00000020")


def test_an_interrupted_run_says_where_it_was_saved(tmp_path: Path) -> None:
    shown = Shown(output=tmp_path)
    shown.report.interrupting()
    (tmp_path / "step-00000007").mkdir()

    shown.report.interrupted()

    assert shown.lines[-2].startswith("saving; interrupt again to end at once")
    assert f"the run is saved in {tmp_path / 'step-00000007'}" in shown.lines[-1]


def test_an_interrupted_run_that_saves_nothing_says_so() -> None:
    shown = Shown()

    shown.report.interrupted()

    assert shown.lines[-1] == "interrupted; nothing was saved"


def test_a_failed_run_says_why() -> None:
    shown = Shown(is_json=True)

    shown.report.failed(
        Failure(exit_code=ExitCode.CONFIGURATION, reason="NoData", message="no file matches")
    )

    assert shown.lines == ["error: the run failed: NoData: no file matches"]


def take_back(**run: Any) -> Shown:
    """Show a run that grows by one layer, which is taken back."""
    small, large = make_configuration(), make_configuration(model__layers=3)
    shown = Shown(small, large, **run)
    shown.report.growing(shown.run.after(16_000))
    shown.report.growth_rejected(shown.run, reject_growth(large, make_rejection()))
    return shown


def test_growth_that_is_taken_back_is_told_at_once_and_at_the_end() -> None:
    shown = take_back()
    shown.report.done()

    why = (
        "growing to 140k parameters was taken back: growth took the validation loss from 2.5000 "
        "to 3.0000 nats a token, and 0.0500 more is allowed (model.growth.tolerance)"
    )
    assert shown.lines[1:] == [
        "growing to 140k parameters, mesh dp2",
        f"{why}; going on with 98.6k parameters, mesh dp2",
        "done at step 0; nothing was saved",
        why,
    ]


def test_the_last_object_has_the_growth_that_was_taken_back() -> None:
    shown = take_back(is_json=True)
    shown.report.done()

    assert shown.objects[-1]["rejected_growth"] == {
        "parameters": 139_712,
        "loss_before": 2.5,
        "loss_after": 3.0,
        "allowed_rise": 0.05,
    }
    assert shown.objects[-1]["parameters"] == 98_624


def test_growth_after_one_that_was_taken_back_is_all_that_counts() -> None:
    shown = take_back(is_json=True)
    shown.report.growing(shown.run.after(16_000))
    shown.report.done()

    assert "rejected_growth" not in shown.objects[-1]

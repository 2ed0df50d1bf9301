from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from modelscaling.exit_code import ExitCode
from modelscaling.protocol import Failure, TerminationReport
from modelscaling_trainer.agent.report import render_report, write_report
from tests.trainer.agent_builders import make_progress

if TYPE_CHECKING:
    from pathlib import Path


def make_report(message: str) -> TerminationReport:
    return TerminationReport(
        generation=3,
        progress=make_progress(),
        failure=Failure(exit_code=ExitCode.CRASHED, reason="WorkerDied", message=message, rank=1),
    )


def test_a_short_report_is_whole() -> None:
    report = make_report("worker 0 was killed by SIGKILL")

    assert TerminationReport.model_validate_json(render_report(report)) == report


@pytest.mark.parametrize(
    "filler",
    [
        pytest.param("x", id="plain letters"),
        pytest.param("→", id="characters of three bytes"),
        pytest.param('"', id="characters that are escaped"),
        pytest.param("\x1b", id="characters that become six bytes"),
    ],
)
def test_a_long_message_is_cut_at_its_front_and_the_json_stays_whole(filler: str) -> None:
    rendered = render_report(make_report(filler * 9000 + "ValueError: the end"))

    assert 3900 <= len(rendered) <= 4096
    read = TerminationReport.model_validate_json(rendered)
    assert read.failure is not None
    assert read.failure.message.startswith("…")
    assert read.failure.message.endswith("ValueError: the end")
    assert read.progress == make_progress()


def test_the_report_is_left_in_the_file(tmp_path: Path) -> None:
    write_report(tmp_path / "termination", make_report("it died"))

    written = (tmp_path / "termination").read_bytes()
    assert TerminationReport.model_validate_json(written) == make_report("it died")


def test_a_report_that_cannot_be_written_is_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_report(tmp_path / "missing/termination", make_report("it died"))

    assert "the termination message was not written" in caplog.text

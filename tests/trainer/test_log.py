from __future__ import annotations

import logging
import sys

from modelscaling_trainer.log import LineFormatter


def make_record(message: str, *arguments: object, **fields: object) -> logging.LogRecord:
    record = logging.LogRecord("trainer", logging.INFO, "", 0, message, arguments, None)
    record.created = 0.25
    record.__dict__ |= fields
    return record


def test_a_record_is_one_line_with_its_fields() -> None:
    record = make_record("formed a group", generation=3, rank=0)

    line = LineFormatter().format(record)

    assert line == "1970-01-01T00:00:00.250+00:00 INFO formed a group generation=3 rank=0"


def test_values_that_could_be_misread_are_quoted() -> None:
    record = make_record("lost", why='rank 1 said "no"\nand left', empty="")

    line = LineFormatter().format(record)

    assert line.endswith('lost why="rank 1 said \\"no\\"\\nand left" empty=""')


def test_a_traceback_does_not_break_the_line() -> None:
    record = make_record("the agent failed")
    try:
        int("no")
    except ValueError:
        record.exc_info = sys.exc_info()

    line = LineFormatter().format(record)

    assert "\n" not in line
    assert "ValueError: invalid literal" in line

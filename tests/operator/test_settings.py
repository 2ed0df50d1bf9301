from __future__ import annotations

import json
import logging
from dataclasses import fields

import pytest

from modelscaling_operator.log import JsonFormatter
from modelscaling_operator.settings import Settings, parse_settings


def test_a_flag_wins_over_its_variable() -> None:
    environment = {"MODELSCALING_POLL_INTERVAL_S": "7", "MODELSCALING_NAMESPACES": "a, b"}
    settings = parse_settings(["--poll-interval-s=3"], environment)

    assert settings.poll_interval_s == 3
    assert settings.namespaces == ("a", "b")


def test_every_setting_has_a_flag_of_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_settings(["--help"], {})
    text = capsys.readouterr().out

    for setting in fields(Settings):
        assert f"--{setting.name.replace('_', '-')}" in text


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--trainer-image=", "trainer_image is empty"),
        ("--poll-interval-s=0", "poll_interval_s=0.0 must be above 0"),
        ("--lease-duration-s=0.5", "lease_duration_s=0.5 must be at least 1"),
        ("--metrics-port=x", "invalid literal"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(
    flag: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        parse_settings([flag], {})

    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_a_log_line_is_json_with_what_it_carries() -> None:
    record = logging.makeLogRecord(
        {"name": "x", "levelname": "INFO", "msg": "hello %s", "args": ("you",), "run": "a/b"}
    )

    line = json.loads(JsonFormatter().format(record))

    assert (line["message"], line["run"], line["level"]) == ("hello you", "a/b", "INFO")

from __future__ import annotations

from typing import Any

import pytest

from modelscaling.cli.error import UsageError
from modelscaling.cli.setting import with_settings
from tests.shared.spec import make_spec


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        pytest.param("spec.replicas=3", {"replicas": 3}, id="a number"),
        pytest.param("spec.suspend=true", {"suspend": True}, id="a boolean"),
        pytest.param("spec.training.tokens=64k", {"training__tokens": "64k"}, id="a quantity"),
        pytest.param("spec.training.tokens=64000", {"training__tokens": 64000}, id="an integer"),
        pytest.param(
            "spec.training.learningRate=0.001",
            {"training__learningRate": "0.001"},
            id="a decimal, which is text",
        ),
        pytest.param(
            "spec.training.learningRate='1e-3'",
            {"training__learningRate": "1e-3"},
            id="a decimal in quotes of YAML",
        ),
        pytest.param(
            "spec.training.schedule.warmupSteps=5",
            {"training__schedule__warmupSteps": 5},
            id="below an object that was not given",
        ),
        pytest.param(
            "spec.data.tokenizer.file=/t.json",
            {"data__tokenizer": {"file": "/t.json"}},
            id="one form of a union",
        ),
        pytest.param(
            "spec.data.text.path=/a=b/*.txt", {"data__text__path": "/a=b/*.txt"}, id="an = in it"
        ),
        pytest.param("spec.model.layers=null", {"model__layers": None}, id="null removes"),
        pytest.param(
            "spec.template.spec.priorityClassName=low",
            {"template__spec__priorityClassName": "low"},
            id="below the pod template",
        ),
    ],
)
def test_a_setting_changes_its_field(setting: str, changed: dict[str, Any]) -> None:
    assert with_settings(make_spec(), [setting]) == make_spec(**changed)


def test_the_last_setting_of_a_field_wins() -> None:
    spec = with_settings(make_spec(), ["spec.replicas=2", "spec.replicas=5"])

    assert spec["replicas"] == 5


def test_the_given_spec_is_left_alone() -> None:
    spec = make_spec()

    with_settings(spec, ["spec.model.layers=9"])

    assert spec == make_spec()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("spec.replicas", "has no value; write spec.path=value"),
        ("replicas=3", "'replicas' is not below spec"),
        ("spec=3", "'spec' is not below spec"),
        ("spec.replica=3", "'replica' is not a field of spec; expected one of model,"),
        ("spec.training.rate=3", "'rate' is not a field of spec.training; expected one of tokens,"),
        ("spec.replicas.x=3", "'x' is not a field of spec.replicas; spec.replicas has no fields"),
        ("spec.model.hidden_size=3", "'hidden_size' is not a field of spec.model"),
        ("spec.model={layers: 3}", "is not a scalar; set its fields one by one"),
        ("spec.replicas=[", "while parsing"),
    ],
)
def test_a_setting_of_what_is_no_field_names_it(setting: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        with_settings(make_spec(), [setting])

    assert str(caught.value).startswith(f"--set {setting}: ")
    assert message in str(caught.value)

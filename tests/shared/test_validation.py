from __future__ import annotations

from typing import Any

import pytest

from modelscaling.api.validation import InvalidSpecError, parse_spec
from tests.shared.spec import BROKEN_RULES, make_spec


def test_a_small_spec_is_legal() -> None:
    assert parse_spec(make_spec()).model.layers == 2


@pytest.mark.parametrize(("changes", "field", "message"), BROKEN_RULES)
def test_a_rule_that_is_broken_names_field_value_and_fix(
    changes: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        parse_spec(make_spec(**changes))

    assert [(p.field, p.message) for p in caught.value.problems] == [(field, message)]


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"model__preset": "llama-9"}, "spec.model.preset", "'llama-9' is not valid"),
        ({"replicas": "3"}, "spec.replicas", "'3' is not valid"),
        ({"training__learningRate": 0.1}, "spec.training.learningRate", "valid string"),
        ({"training": {"tokens": 1}}, "spec.training.globalBatchSize", "is required; set it"),
        ({"data__tokenizer": 5}, "spec.data.tokenizer", "5 is not valid: expected Byte, or {file:"),
        ({"data__tokenizer": {"path": "x"}}, "spec.data.tokenizer", "expected Byte, or {file:"),
        ({"modle": {}}, "spec.modle", "is not a field of the API"),
        (
            {"model__growth": {"schedule": [{"tokens": 1, "contextLength": 128}]}},
            "spec.model.growth.schedule[0].contextLength",
            "is not a field of the API",
        ),
        ({"checkpoint": {"volume": {}}}, "spec.checkpoint.volume", "at least 1 item"),
    ],
)
def test_what_the_schema_refuses_names_the_field(
    changes: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        parse_spec(make_spec(**changes))

    (problem,) = caught.value.problems
    assert problem.field == field
    assert words in problem.message


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(InvalidSpecError) as caught:
        parse_spec(make_spec(model__kvHeads=3, training__tokens="X"))

    assert {p.field for p in caught.value.problems} == {
        "spec.model.kvHeads",
        "spec.training.tokens",
    }

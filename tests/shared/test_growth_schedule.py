"""spec.model.growth.schedule: the shapes that it stands for, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from modelscaling.api.validation import InvalidSpecError, parse_spec
from modelscaling.growth_schedule import resolve_later_plans, resolve_stages
from tests.shared.spec import make_spec

if TYPE_CHECKING:
    from modelscaling.api.modelscaling import ModelScalingSpec


def scheduled(*entries: dict[str, Any], **changes: Any) -> ModelScalingSpec:
    return parse_spec(make_spec(model__growth__schedule=[*entries], **changes))


def test_each_entry_changes_what_the_entries_before_have_left() -> None:
    stages = resolve_stages(
        scheduled(
            {"tokens": "16k", "layers": 4},
            {"tokens": 32_000, "feedForwardSize": 256},
            {"tokens": "48k", "hiddenSize": 128, "heads": 8},
        )
    )

    assert [stage.tokens for stage in stages] == [0, 16_000, 32_000, 48_000]
    assert [stage.shape.layers for stage in stages] == [2, 4, 4, 4]
    assert [stage.shape.feed_forward_size for stage in stages] == [128, 128, 256, 256]
    assert [stage.shape.hidden_size for stage in stages] == [64, 64, 64, 128]
    assert {stage.shape.head_size for stage in stages} == {16}


def test_without_a_schedule_there_is_the_declared_shape_alone() -> None:
    (only,) = resolve_stages(parse_spec(make_spec()))

    assert (only.tokens, only.shape.layers) == (0, 2)


def test_a_size_that_is_wished_for_grows_to_another_one() -> None:
    schedule = [{"tokens": "32k", "parameters": "60M"}]
    model = {"parameters": "30M", "growth": {"schedule": schedule}}
    first, second = resolve_stages(parse_spec(make_spec(model=model)))

    assert first.shape.parameters() == pytest.approx(30e6, rel=0.03)
    assert second.shape.parameters() == pytest.approx(60e6, rel=0.03)


def test_layers_are_stacked_only_where_the_mode_says_so() -> None:
    entry = {"tokens": "32k", "ropeTheta": "20000"}

    assert len(resolve_stages(scheduled(entry, model__growth__mode="Stack"))) == 2
    with pytest.raises(InvalidSpecError, match="ropeTheta: 20000 is not the 10000"):
        resolve_stages(scheduled(entry))


@pytest.mark.parametrize(
    ("entries", "field", "words"),
    [
        pytest.param(
            [{"tokens": "32k", "layers": 4}, {"tokens": 32_000, "layers": 6}],
            "[1].tokens",
            "32000 is not above 32000, at which the model is the one before",
            id="two at the same count",
        ),
        pytest.param(
            [{"tokens": "32k", "layers": 4}, {"tokens": "16k", "layers": 6}],
            "[1].tokens",
            "16k is not above 32000",
            id="a count below the one before",
        ),
        pytest.param(
            [{"tokens": 0, "layers": 4}], "[0].tokens", "0 is not above 0", id="from the beginning"
        ),
        pytest.param(
            [{"tokens": "64k", "layers": 4}],
            "[0].tokens",
            "64k is not below training.tokens=64k, so that the run would end before",
            id="at the end",
        ),
        pytest.param(
            [{"tokens": "5X", "layers": 4}], "[0].tokens", "'5X' is not a quantity", id="no count"
        ),
        pytest.param([{"tokens": "32k"}], "[0]", "changes nothing", id="nothing"),
        pytest.param(
            [{"tokens": "16k", "layers": 4}, {"tokens": "32k", "layers": 4}],
            "[1]",
            "changes nothing",
            id="what is so already",
        ),
        pytest.param(
            [{"tokens": "16k", "layers": 4}, {"tokens": "32k", "layers": 3}],
            "[1].layers",
            "3 is less than the 4",
            id="a smaller model",
        ),
        pytest.param(
            [{"tokens": "16k", "hiddenSize": 128}],
            "[0].headSize",
            "set headSize=16 or heads=8",
            id="a shape that is not reached",
        ),
        pytest.param(
            [{"tokens": "16k", "heads": 5}],
            "[0].hiddenSize",
            "hiddenSize=64 is not divisible by heads=5",
            id="a shape that cannot be",
        ),
        pytest.param(
            [{"tokens": "16k", "parameters": "1M"}],
            "[0].parameters",
            "parameters=1M decides the size alone",
            id="a size beside a shape",
        ),
    ],
)
def test_what_cannot_be_is_refused_at_its_entry(
    entries: list[dict[str, Any]], field: str, words: str
) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        resolve_stages(scheduled(*entries))

    (problem,) = caught.value.problems
    assert problem.field == f"spec.model.growth.schedule{field}"
    assert words in problem.message


def test_a_mesh_that_a_later_model_cannot_have_is_refused_at_its_entry() -> None:
    spec = scheduled(
        {"tokens": "16k", "layers": 4},
        {"tokens": "32k", "feedForwardSize": 129},
        processesPerReplica=2,
        parallelism={"strategy": "Custom", "tensor": 2},
    )
    with pytest.raises(InvalidSpecError) as caught:
        resolve_later_plans(spec, resolve_stages(spec))

    (problem,) = caught.value.problems
    assert problem.field == "spec.model.growth.schedule[1]"
    assert "tensor=2 does not divide feedForwardSize=129" in problem.message

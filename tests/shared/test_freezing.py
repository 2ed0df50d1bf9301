from __future__ import annotations

import pytest

from modelscaling.freezing import freezing_problems, is_frozen
from modelscaling.layout import weights
from modelscaling.shape import ModelShape

SHAPE = ModelShape(
    layers=12,
    hidden_size=32,
    heads=4,
    kv_heads=2,
    head_size=8,
    feed_forward_size=48,
    vocabulary_size=61,
    context_length=40,
    tied_embeddings=True,
)
NAMES = weights(SHAPE)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        pytest.param((), set(), id="none"),
        pytest.param(("embed_tokens.*",), {"embed_tokens.weight"}, id="the table"),
        pytest.param(
            ("layers.[01].mlp.up_proj.weight",),
            {"layers.0.mlp.up_proj.weight", "layers.1.mlp.up_proj.weight"},
            id="a range of layers, and not those whose number begins so",
        ),
        pytest.param(
            ("norm.*", "layers.1?.input_layernorm.weight"),
            {
                "norm.weight",
                "layers.10.input_layernorm.weight",
                "layers.11.input_layernorm.weight",
            },
            id="several patterns",
        ),
    ],
)
def test_what_a_pattern_matches_as_a_whole_is_frozen(
    patterns: tuple[str, ...], expected: set[str]
) -> None:
    assert {name for name in NAMES if is_frozen(name, patterns)} == expected
    assert [*freezing_problems(NAMES, NAMES, patterns)] == []


def test_a_pattern_that_matches_nothing_is_named_with_names_that_there_are() -> None:
    (problem,) = freezing_problems(NAMES, NAMES, ("embed_tokens.*", "lm_head.*"))

    assert problem.startswith(
        f"'lm_head.*' matches no weight; the {len(NAMES)} weights are called embed_tokens.weight, "
        f"layers.0.input_layernorm.weight, "
    )
    assert problem.endswith(", …")


def test_a_model_of_which_nothing_is_trained_is_refused() -> None:
    assert [*freezing_problems(NAMES, NAMES, ("*",))] == [
        "no weight is left to train beside '*'; remove one"
    ]


def test_a_pattern_of_what_is_not_trained_anyway_is_refused() -> None:
    adapters = [name for name in NAMES if "q_proj" in name]

    problems = [*freezing_problems(NAMES, adapters, ("layers.0.*", "embed_tokens.*"))]

    assert problems == [
        "'embed_tokens.*' matches only weights that model.lora keeps anyway; remove it"
    ]

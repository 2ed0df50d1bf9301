from __future__ import annotations

from dataclasses import replace

import pytest

from modelscaling.configuration import LearningRateFactor
from modelscaling.layout import weights
from modelscaling.learning_rates import learning_rate_factors, learning_rate_problems
from modelscaling.shape import ModelShape

SHAPE = ModelShape(
    layers=3,
    hidden_size=32,
    heads=4,
    kv_heads=2,
    head_size=8,
    feed_forward_size=48,
    vocabulary_size=61,
    context_length=40,
    tied_embeddings=False,
)


def _entry(pattern: str, *, factor: float = 1.0, layer_decay: float = 1.0) -> LearningRateFactor:
    return LearningRateFactor(weights=pattern, factor=factor, layer_decay=layer_decay)


def _factors(*entries: LearningRateFactor) -> dict[str, float]:
    """Return those of one weight of each depth."""
    found = learning_rate_factors(SHAPE, entries)
    assert found.keys() == weights(SHAPE).keys()
    return {
        name: found[name]
        for name in (
            "embed_tokens.weight",
            "layers.0.mlp.up_proj.weight",
            "layers.2.input_layernorm.weight",
            "norm.weight",
            "lm_head.weight",
        )
    }


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        pytest.param((), [1, 1, 1, 1, 1], id="none"),
        pytest.param(
            (_entry("*", layer_decay=0.5),), [0.0625, 0.125, 0.5, 1, 1], id="decay by depth"
        ),
        pytest.param(
            (_entry("layers.[01].*", factor=0.1),), [1, 0.1, 1, 1, 1], id="some layers slower"
        ),
        pytest.param(
            (_entry("*", layer_decay=0.5), _entry("layers.*", factor=10, layer_decay=0.5)),
            [0.0625, 10 * 0.125**2, 10 * 0.25, 1, 1],
            id="all that match are multiplied",
        ),
    ],
)
def test_a_weight_has_the_product_of_what_matches_it(
    entries: tuple[LearningRateFactor, ...], expected: list[float]
) -> None:
    assert [*_factors(*entries).values()] == pytest.approx(expected)


def test_a_tied_table_decays_as_the_input_that_it_is() -> None:
    tied = replace(SHAPE, tied_embeddings=True)

    factors = learning_rate_factors(tied, (_entry("*", layer_decay=0.5),))

    assert factors["embed_tokens.weight"] == 0.5**4


def test_a_model_that_has_grown_in_depth_decays_over_its_new_layers() -> None:
    deeper = replace(SHAPE, layers=6)

    factors = learning_rate_factors(deeper, (_entry("*", layer_decay=0.5),))

    assert factors["layers.0.mlp.up_proj.weight"] == 0.5**6


def test_patterns_that_mean_nothing_are_named_by_their_index() -> None:
    names = weights(SHAPE)

    trained = [name for name in names if name != "norm.weight"]

    problems = dict(learning_rate_problems(names, trained, ["*", "head", "norm.*"]))

    assert problems.keys() == {1, 2}
    assert problems[1].startswith("'head' matches no weight; the ")
    assert problems[2].startswith("'norm.*' matches only weights that stay as they are")

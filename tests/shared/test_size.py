from __future__ import annotations

from math import exp, log
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscaling.size import LARGEST, SMALLEST, TOLERANCE, shape_of_size

if TYPE_CHECKING:
    from modelscaling.shape import ModelShape

WISHES = st.floats(log(100_000), log(100e9)).map(lambda power: round(exp(power)))
"""From 100k to 100B, as many of each order of magnitude."""


def _shape(parameters: int, *, vocabulary: int = 256, is_tied: bool = True) -> ModelShape:
    return shape_of_size(
        parameters, vocabulary_size=vocabulary, tied_embeddings=is_tied, context_length=1024
    )


@settings(deadline=None)
@given(WISHES, st.booleans())
def test_a_byte_model_has_what_was_wished_for_in_sound_proportions(
    parameters: int,
    is_tied: bool,  # noqa: FBT001 - hypothesis passes it by position
) -> None:
    shape = _shape(parameters, is_tied=is_tied)

    assert abs(shape.parameters() - parameters) <= TOLERANCE * parameters
    assert shape.hidden_size == shape.heads * shape.head_size
    assert 25 <= shape.hidden_size / shape.layers <= 256
    assert 1.5 <= shape.feed_forward_size / shape.hidden_size <= 4.5
    assert shape.heads % 2 == 0 or shape.hidden_size < 256


@settings(deadline=None)
@given(WISHES, st.integers(2, 260_000), st.booleans())
def test_a_wish_that_the_tables_leave_room_for_is_met_with_any_vocabulary(
    parameters: int,
    vocabulary: int,
    is_tied: bool,  # noqa: FBT001
) -> None:
    tables = vocabulary * 16 * (1 if is_tied else 2)
    if parameters < tables + 10_000:
        return

    shape = _shape(parameters, vocabulary=vocabulary, is_tied=is_tied)

    assert abs(shape.parameters() - parameters) <= TOLERANCE * parameters


@settings(deadline=None)
@given(WISHES, st.floats(1.0, 1.1), st.sampled_from([256, 32_000, 151_936]))
def test_a_larger_wish_never_gets_a_smaller_model(
    parameters: int, factor: float, vocabulary: int
) -> None:
    if parameters < 10e6 and vocabulary > 256:
        return

    small = _shape(parameters, vocabulary=vocabulary)
    large = _shape(round(parameters * factor), vocabulary=vocabulary)

    assert small.parameters() <= large.parameters()


@pytest.mark.parametrize(
    ("parameters", "vocabulary", "expected"),
    [
        (100_000, 256, (1, 80, 224, 16)),
        (20_000_000, 256, (7, 512, 1152, 64)),
        (100_000_000, 32_000, (11, 768, 1920, 64)),
        (1_000_000_000, 32_000, (27, 1664, 4736, 64)),
        (7_000_000_000, 128_256, (32, 4096, 10880, 128)),
        (100_000_000_000, 256, (80, 10240, 27264, 128)),
    ],
)
def test_sizes(parameters: int, vocabulary: int, expected: tuple[int, ...]) -> None:
    shape = _shape(parameters, vocabulary=vocabulary)

    assert expected == (
        shape.layers,
        shape.hidden_size,
        shape.feed_forward_size,
        shape.head_size,
    )


def test_a_wish_below_the_vocabularys_tables_names_the_least_size() -> None:
    with pytest.raises(ValueError, match=r"vocabularySize=128256 has about 1000000 .* wish for 2"):
        _shape(1_000_000, vocabulary=128_256)


@pytest.mark.parametrize("parameters", [SMALLEST - 1, LARGEST + 1])
def test_a_wish_beyond_all_bounds_is_refused(parameters: int) -> None:
    with pytest.raises(ValueError, match="is not between 10000 and 1000000000000"):
        _shape(parameters)

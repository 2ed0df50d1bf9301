from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelscaling.quantity import format_quantity, parse_quantity


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(12, 12, id="an integer is itself"),
        pytest.param("12", 12, id="digits are an integer"),
        pytest.param("20k", 20_000, id="thousands"),
        pytest.param("200M", 200_000_000, id="millions"),
        pytest.param("1.5B", 1_500_000_000, id="a fraction of billions"),
        pytest.param("0.0001T", 100_000_000, id="a small fraction of trillions"),
        pytest.param("2.3M", 2_300_000, id="not off by one through floating point"),
    ],
)
def test_a_quantity_is_its_exact_integer(text: int | str, expected: int) -> None:
    assert parse_quantity(text) == expected


@pytest.mark.parametrize("text", ["200X", "", "M", "-5", "1e6", "1.5", "0.0001k", "20 M"])
def test_what_is_no_whole_quantity_is_refused_by_its_value(text: str) -> None:
    with pytest.raises(ValueError, match="is not a") as caught:
        parse_quantity(text)

    assert repr(text) in str(caught.value)


@given(st.integers(min_value=0, max_value=10**15))
def test_the_format_for_people_is_within_half_a_percent(count: int) -> None:
    shown = format_quantity(count)

    assert abs(parse_quantity(shown) - count) <= count * 0.005


@pytest.mark.parametrize(
    ("count", "expected"),
    [(999, "999"), (25_371_648, "25.4M"), (999_999, "1M"), (8_030_261_248, "8.03B")],
)
def test_the_format_for_people_has_three_digits(count: int, expected: str) -> None:
    assert format_quantity(count) == expected

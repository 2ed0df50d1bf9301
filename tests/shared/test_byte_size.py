from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelscaling.byte_size import BYTE_SIZE_PATTERN, format_byte_size, parse_byte_size


@pytest.mark.parametrize(
    ("written", "count"),
    [
        ("80Gi", 80 * 2**30),
        ("1.5Gi", 3 * 2**29),
        ("2G", 2 * 10**9),
        ("512Mi", 2**29),
        ("500k", 500_000),
        ("1e9", 10**9),
        ("1500m", 1),
        (4096, 4096),
        ("4096", 4096),
    ],
)
def test_a_size_is_read_as_kubernetes_reads_it(written: int | str, count: int) -> None:
    assert parse_byte_size(written) == count


@pytest.mark.parametrize("written", ["", "80GB", "-1Gi", "Gi", "1 Gi", "1e999", "80gi"])
def test_what_is_no_size_is_refused_with_an_example(written: str) -> None:
    with pytest.raises(ValueError, match=f"{written!r} is not a size.*512Mi or 80Gi"):
        parse_byte_size(written)


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0"),
        (1023, "1023"),
        (1024, "1Ki"),
        (1_288_490_189, "1.2Gi"),
        (1023 * 2**20, "1023Mi"),
        (80 * 2**30, "80Gi"),
    ],
)
def test_bytes_are_shown_short(count: int, shown: str) -> None:
    assert format_byte_size(count) == shown


@given(st.integers(1024, 2**60 - 1))
def test_what_is_shown_can_be_written_and_is_within_half_a_percent(count: int) -> None:
    shown = format_byte_size(count)

    # Three digits are within half a percent, and what is written is cut to whole bytes.
    assert abs(parse_byte_size(shown) - count) <= 0.005 * count + 1
    assert count >= 2**50 or re.fullmatch(BYTE_SIZE_PATTERN, shown)

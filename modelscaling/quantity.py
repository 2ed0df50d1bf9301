"""Counts written as people write them: `200M` tokens, `1.5B` parameters.

The suffixes are decimal (k = 10³, M = 10⁶, B = 10⁹, T = 10¹²), unlike Kubernetes' resource
quantities, where `M` is also 10⁶ but `B` and `T` of a model's size are not to be had.
"""

from __future__ import annotations

import re
from fractions import Fraction

QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?[kMBT]?$"

_SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def parse_quantity(value: int | str) -> int:
    """Return the integer that a quantity stands for; `ValueError` says what was expected."""
    if isinstance(value, int):
        return value
    if not re.fullmatch(QUANTITY_PATTERN, value):
        raise ValueError(
            f"{value!r} is not a quantity: expected an integer, or a number with the suffix k, M, "
            f"B or T, such as 200M or 1.5B"
        )
    suffix = value[-1] if value[-1] in _SUFFIXES else ""
    exact = Fraction(value.removesuffix(suffix)) * _SUFFIXES[suffix]
    if exact.denominator != 1:
        raise ValueError(f"{value!r} is not a whole number; write it with a smaller suffix")
    return int(exact)


def format_quantity(count: int) -> str:
    """Return a count in three significant digits, for people: 25_371_648 is `25.4M`."""
    rounded = int(float(f"{count:.3g}"))
    suffix, unit = next(
        ((suffix, unit) for suffix, unit in reversed(_SUFFIXES.items()) if rounded >= unit),
        ("", 1),
    )
    # From 1000 of the largest unit on, "%g" would switch to an exponent.
    return (
        f"{rounded / unit:.3g}{suffix}" if rounded < 1000 * unit else f"{rounded // unit}{suffix}"
    )

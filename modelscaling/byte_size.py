"""Bytes as Kubernetes writes them: `80Gi`, `512Mi`, `2G`."""

from __future__ import annotations

import re
from fractions import Fraction

BYTE_SIZE_PATTERN = r"^[1-9][0-9]*(\.[0-9]+)?([kMGT]|[KMGT]i)?$"
"""What the API takes; resource limits of a pod may be written in further ways."""

_BINARY = {f"{letter}i": 1024**power for power, letter in enumerate("KMGTPE", start=1)}
_DECIMAL = {letter: 1000**power for power, letter in enumerate("kMGTPE", start=1)}
_UNITS = {"m": Fraction(1, 1000), "": Fraction(1)} | {
    suffix: Fraction(unit) for suffix, unit in (_BINARY | _DECIMAL).items()
}
_KUBERNETES = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE](-?[0-9]{1,2})|([KMGTPE]i|[mkMGTPE]))?")


def parse_byte_size(value: int | str) -> int:
    """Return the bytes that a Kubernetes quantity stands for, rounded down.

    Raises:
        ValueError: it is not one.
    """
    found = _KUBERNETES.fullmatch(str(value))
    if found is None:
        raise ValueError(f"{value!r} is not a size in bytes; write it such as 512Mi or 80Gi")
    number, exponent, suffix = found.groups()
    return int(Fraction(number) * Fraction(10) ** int(exponent or 0) * _UNITS[suffix or ""])


def format_byte_size(count: int) -> str:
    """Return bytes in three significant digits, for people: 1_288_490_189 is `1.2Gi`."""
    if count < 1024:  # noqa: PLR2004 - one Ki
        return str(count)
    suffix, unit = max((item for item in _BINARY.items() if count >= item[1]), key=lambda i: i[1])
    scaled = count / unit
    return f"{scaled:.3g}{suffix}" if scaled < 1000 else f"{scaled:.0f}{suffix}"  # noqa: PLR2004

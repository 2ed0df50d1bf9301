"""How long to wait before something is tried again."""

from __future__ import annotations

_LONGEST_S = 60.0


def back_off_s(failures: int) -> float:
    """Return the seconds (0, 1, 2, 4, …) to wait after so many failures in a row before this."""
    if failures == 0:
        return 0.0
    return min(2.0 ** min(failures - 1, 16), _LONGEST_S)

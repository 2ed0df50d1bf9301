from __future__ import annotations

import pytest

from bench.goodput import kill_times


@pytest.mark.parametrize(
    ("seconds", "kills"),
    [
        pytest.param(15.0, [], id="no whole period"),
        pytest.param(20.0, [10.0], id="one"),
        pytest.param(70.0, [10.0, 30.0, 50.0], id="the rest of a period is for recovery"),
    ],
)
def test_a_worker_is_killed_in_each_period(seconds: float, kills: list[float]) -> None:
    assert kill_times(seconds) == kills

from __future__ import annotations

import pytest

from modelscaling_trainer.throughput import Throughput, goodput_ratio


def test_speed_is_over_the_last_steps_only() -> None:
    throughput = Throughput(tokens_per_step=100, flops_per_token=6, peak_flops=2400)
    throughput.add(1000.0)
    for _ in range(20):
        throughput.add(0.5)

    assert throughput.tokens_per_second == pytest.approx(200)
    assert throughput.mfu_ratio == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("useful", "started", "now", "ratio"),
    [(50, 1000, 1100, 0.5), (50, 1000, 990, 1.0), (0, 1000, 1000, 0.0)],
    ids=["half", "a clock that was set back", "nothing yet"],
)
def test_goodput(useful: float, started: float, now: float, ratio: float) -> None:
    assert ratio == goodput_ratio(useful_seconds=useful, started_at=started, now=now)

from __future__ import annotations

from modelscaling_trainer.agent.back_off import back_off_s


def test_the_first_failure_costs_nothing_and_the_later_ones_ever_more_up_to_a_minute() -> None:
    assert [back_off_s(failures) for failures in (0, 1, 2, 3, 6, 7, 8, 100_000)] == [
        *(0, 1, 2, 4),
        *(32, 60, 60, 60),
    ]

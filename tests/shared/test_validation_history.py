from __future__ import annotations

import math

import pytest

from modelscaling.validation_history import VALIDATIONS_KEPT, Validation, ValidationHistory
from tests.shared.validations import make_history


@pytest.mark.parametrize(
    ("losses", "min_delta", "best_step", "without_improvement"),
    [
        pytest.param([3.0], 0.0, 10, 0, id="the first is the best"),
        pytest.param([3.0, 2.0], 0.0, 20, 0, id="a lower one improves"),
        pytest.param([3.0, 3.0], 0.0, 10, 1, id="an equal one does not"),
        pytest.param([3.0, 2.95, 2.9], 0.1, 10, 2, id="less than the least improvement is none"),
        pytest.param([3.0, 2.95, 2.85], 0.1, 30, 0, id="small steps add up to an improvement"),
        pytest.param([2.0, 3.0, 2.5, 2.1], 0.0, 10, 3, id="falling below the best is what counts"),
        pytest.param([2.0, 3.0, 1.9, 4.0], 0.0, 30, 1, id="an improvement starts the count again"),
        pytest.param([2.0, math.nan, math.inf], 0.0, 10, 2, id="what is no number is none"),
    ],
)
def test_the_best_validation_and_how_many_followed_it(
    losses: list[float], min_delta: float, best_step: int, without_improvement: int
) -> None:
    history = make_history(losses, min_delta=min_delta)

    assert history.best is not None
    assert history.best.step == best_step
    assert history.without_improvement == without_improvement


def test_only_the_last_validations_are_remembered_beside_the_best() -> None:
    history = make_history([1.0, *(2.0 for _ in range(VALIDATIONS_KEPT + 3))])

    assert history.best == Validation(step=10, loss=1.0, training_loss=1.0)
    assert len(history.recent) == VALIDATIONS_KEPT
    assert history.recent[-1].step == (VALIDATIONS_KEPT + 4) * 10


def test_validations_count_only_while_a_better_one_is_awaited() -> None:
    history = make_history([1.0, 2.0, 2.0])
    worse = Validation(step=40, loss=2.0, training_loss=2.0)

    assert history.after(worse).without_improvement == 3
    assert history.after(worse, is_awaited=False).without_improvement == 0


@pytest.mark.parametrize(
    ("patience", "is_lost"),
    [(None, False), (3, False), (2, True), (1, True)],
)
def test_patience_is_lost_after_so_many_validations(patience: int | None, *, is_lost: bool) -> None:
    assert make_history([1.0, 2.0, 2.0]).has_lost_patience(patience) is is_lost


def test_a_run_that_was_never_validated_has_no_best() -> None:
    assert not ValidationHistory().is_best_at(0)
    assert not ValidationHistory().has_lost_patience(1)

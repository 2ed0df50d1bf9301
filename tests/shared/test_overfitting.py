from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelscaling.advice import find_overfitting
from modelscaling.validation_history import Validation, ValidationHistory
from tests.shared.validations import OVERFITTING, make_history

LOSSES = st.floats(0.1, 10.0)


@pytest.mark.parametrize(
    ("losses", "training_losses", "overfits"),
    [
        pytest.param([], [], False, id="nothing is measured"),
        pytest.param([2.0, 2.5], [2.0, 1.5], False, id="too few measurements"),
        pytest.param([2.0, 2.1, 2.2], [2.0, 1.9, 1.8], False, id="two above the best"),
        pytest.param([2.0, 2.1, 2.2, 2.3], [2.0, 1.9, 1.8, 1.7], True, id="three above the best"),
        pytest.param([2.0, 2.1, 2.2, 2.3], [2.0, 2.1, 2.2, 2.3], False, id="both rise"),
        pytest.param([2.0, 2.1, 2.2, 2.3], [2.0, 2.0, 2.0, 1.99], False, id="training stands"),
        pytest.param([2.0, 2.03, 2.03, 2.03], [2.0, 1.9, 1.8, 1.7], False, id="below two percent"),
        pytest.param([2.0, 2.1, 2.0, 2.3], [2.0, 1.9, 1.8, 1.7], False, id="not in a row"),
        pytest.param([4.0, 3.0, 2.5, 2.2], [4.0, 3.0, 2.4, 2.0], False, id="both fall"),
        pytest.param(
            [2.0, 2.3, 2.1, 2.4, 2.05, 2.3],
            [2.0, 1.9, 1.8, 1.7, 1.6, 1.5],
            False,
            id="no more than its jitter above the best",
        ),
        pytest.param(
            [1.8, 1.36, 1.0, 0.72, 0.645, 0.686, 0.754, 0.791, 0.784],
            [1.8, 1.4, 1.0, 0.7, 0.5, 0.4, 0.3, 0.2, 0.15],
            True,
            id="a rise after a steep fall",
        ),
        pytest.param(
            [2.0, 2.1, 2.2, 2.3, 2.2, 2.1, 1.9],
            [2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4],
            False,
            id="better again than ever",
        ),
    ],
)
def test_a_run_overfits_where_validation_rises_and_training_falls(
    losses: list[float], training_losses: list[float], *, overfits: bool
) -> None:
    found = find_overfitting(make_history(losses, training_losses))

    assert (found is not None) is overfits


def test_the_message_has_the_numbers_and_does_not_change_with_each_of_them() -> None:
    overfitting = find_overfitting(OVERFITTING)
    later = OVERFITTING.after(Validation(step=70, loss=2.95, training_loss=0.9))

    assert overfitting is not None
    assert overfitting.message == (
        "The validation loss was best at step 20 with 2.0000, and has been higher for at least 3 "
        "validations, by now by 20 % or more, while the training loss fell by 50 % or more."
    )
    again = find_overfitting(later)
    assert again is not None
    assert again.message == overfitting.message


@pytest.mark.parametrize("memory", [0.0, 0.8])
def test_jitter_around_a_standstill_is_hardly_ever_taken_for_overfitting(memory: float) -> None:
    draw = random.Random(0)
    looks = alarms = 0
    for _ in range(50):
        history, jitter = ValidationHistory(), 0.0
        for step in range(1, 101):
            jitter = memory * jitter + draw.gauss(0, 0.01 * math.sqrt(1 - memory**2))
            # Training falls all the time, so that only the validation loss decides.
            measured = Validation(step=step, loss=2.0 + jitter, training_loss=2 / step)
            history = history.after(measured)
            looks += 1
            alarms += find_overfitting(history) is not None

    assert looks == 5000
    assert alarms / looks < 0.02


@given(slope=st.floats(0.02, 1.0), noise=st.floats(0.0, 0.1), seed=st.integers(0, 1000))
def test_a_rise_well_above_the_noise_is_always_seen(slope: float, noise: float, seed: int) -> None:
    draw = random.Random(seed)
    losses = [2.0, *(2.0 + slope * (n + draw.uniform(-noise, noise)) for n in range(4, 9))]

    found = find_overfitting(make_history(losses, [2.0, 1.9, 1.8, 1.7, 1.6, 1.5]))

    assert found is not None
    assert found.best.step == 10


@given(st.lists(st.tuples(LOSSES, LOSSES), max_size=12))
def test_what_is_a_new_best_never_overfits(measured: list[tuple[float, float]]) -> None:
    losses = [loss for loss, _ in measured] + [0.05]
    training_losses = [loss for _, loss in measured] + [0.01]

    assert find_overfitting(make_history(losses, training_losses)) is None

"""When the growth of a model is taken back."""

from __future__ import annotations

from dataclasses import replace
from math import log, nan
from typing import Any

import pytest

from modelscaling.growth.trained_model import TrainedModel
from modelscaling.protocol import GrowthRejection
from modelscaling.validation_history import Validation, ValidationHistory
from modelscaling_trainer.growth.verdict import Outgrown, reject
from modelscaling_trainer.state import Counters
from tests.trainer.runs import make_run

RUN = make_run("unused", model__layers=4, growth_tolerance=0.05)
BEFORE = replace(RUN.model, layers=2)


def outgrown(*, measured_at: int | None = 8, **changes: Any) -> Outgrown:
    """What 8 steps were done with, whose validation loss was 2.5."""
    history = ValidationHistory()
    if measured_at is not None:
        history = history.after(Validation(step=measured_at, loss=2.5, training_loss=2.4))
    return Outgrown(
        model=TrainedModel(shape=replace(BEFORE, **changes)),
        counters=Counters(step=8, validations=history),
        is_kept=True,
    )


@pytest.mark.parametrize(
    ("loss_after", "is_rejected"), [(2.4, False), (2.549, False), (2.551, True), (nan, True)]
)
def test_a_rise_above_the_tolerance_is_rejected(loss_after: float, *, is_rejected: bool) -> None:
    assert (reject(outgrown(), RUN, loss_after=loss_after) is not None) == is_rejected


def test_what_is_told_is_what_was_trained_and_both_losses() -> None:
    padded = outgrown(norm_epsilon=RUN.model.norm_epsilon / 2)

    assert reject(padded, RUN, loss_after=3.0) == GrowthRejection(
        model=BEFORE, loss_before=2.5, loss_after=3.0, allowed_rise=0.05
    )


def test_a_loss_that_is_no_number_is_told_as_none() -> None:
    rejection = reject(outgrown(), RUN, loss_after=nan)

    assert rejection is not None
    assert rejection.loss_after is None
    assert GrowthRejection.model_validate_json(rejection.model_dump_json()) == rejection


def test_new_tokens_may_cost_their_part_of_the_probability() -> None:
    fewer = outgrown(vocabulary_size=128)
    allowed = 0.05 + log(2)

    assert reject(fewer, RUN, loss_after=2.5 + allowed - 0.001) is None
    assert reject(fewer, RUN, loss_after=2.5 + allowed + 0.001) is not None


@pytest.mark.parametrize(
    ("before", "tolerance"),
    [
        pytest.param(outgrown(), None, id="no tolerance"),
        pytest.param(outgrown(measured_at=None), 0.05, id="no loss before"),
        pytest.param(outgrown(measured_at=7), 0.05, id="the loss of an earlier step"),
        pytest.param(outgrown(context_length=16), 0.05, id="other samples"),
    ],
)
def test_what_cannot_be_compared_is_not_rejected(before: Outgrown, tolerance: float | None) -> None:
    run = RUN.model_copy(update={"growth_tolerance": tolerance})

    assert reject(before, run, loss_after=9.0) is None

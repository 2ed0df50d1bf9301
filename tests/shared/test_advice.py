from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from modelscaling.advice import advise_balance, advise_generalisation, advise_repetition
from modelscaling.advice.percent import coarse_percent
from modelscaling.advice.repetition import effective_epochs
from modelscaling.api.advice import AdviceReason
from modelscaling.api.validation import parse_spec
from modelscaling.resolve import resolve_configuration
from tests.shared.spec import make_spec
from tests.shared.validations import make_history

if TYPE_CHECKING:
    from modelscaling.configuration import RunConfiguration

PARAMETERS = 98_624
STEP = 8 * 64
"""Tokens in a step of the small spec."""


def make_configuration(tokens: int) -> RunConfiguration:
    return resolve_configuration(parse_spec(make_spec(training__tokens=tokens)))


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        pytest.param(9 * PARAMETERS, AdviceReason.UNDER_TRAINED, id="less than half"),
        pytest.param(11 * PARAMETERS, AdviceReason.COMPUTE_OPTIMAL, id="more than half"),
        pytest.param(20 * PARAMETERS, AdviceReason.COMPUTE_OPTIMAL, id="twenty"),
        pytest.param(39 * PARAMETERS, AdviceReason.COMPUTE_OPTIMAL, id="less than double"),
        pytest.param(41 * PARAMETERS, AdviceReason.OVER_TRAINED, id="more than double"),
    ],
)
def test_tokens_are_compared_with_twenty_a_parameter(tokens: int, reason: AdviceReason) -> None:
    advice = advise_balance(make_configuration(tokens))

    assert advice is not None
    assert (advice.type, advice.reason) == ("Balance", reason)
    assert "Hoffmann et al. 2022" in advice.source


def test_the_balance_is_told_with_its_numbers_and_how_they_are_counted() -> None:
    configuration = make_configuration(64_000)
    advice = advise_balance(configuration)

    assert configuration.model.parameters() == PARAMETERS
    assert advice is not None
    assert advice.message == (
        "64k tokens for 98.6k parameters (embeddings included) are 0.649 tokens a parameter; "
        "compute-optimal are about 20 subword tokens, here 1.97M. A smaller model on more tokens "
        "would reach a lower loss with the same compute."
    )


def test_a_run_that_begins_with_trained_weights_is_not_measured_by_its_own_tokens() -> None:
    spec = make_spec(model__initFrom={"checkpoint": {"path": "/runs/a"}})

    assert advise_balance(resolve_configuration(parse_spec(spec))) is None


@pytest.mark.parametrize(
    ("epochs", "reason"),
    [
        pytest.param(1, AdviceReason.LITTLE_REPETITION, id="one pass"),
        pytest.param(4, AdviceReason.LITTLE_REPETITION, id="four"),
        pytest.param(5, AdviceReason.MUCH_REPETITION, id="five"),
    ],
)
def test_beyond_four_epochs_the_value_of_repeated_tokens_falls(
    epochs: int, reason: AdviceReason
) -> None:
    configuration = make_configuration(20 * epochs * STEP)

    advice = advise_repetition(configuration, epoch_tokens=20 * STEP)

    assert (advice.type, advice.reason) == ("Repetition", reason)
    assert f" are {epochs} epochs over the 10.2k tokens of the data" in advice.message


@pytest.mark.parametrize(
    ("epochs", "worth"),
    [
        pytest.param(0.5, 0.5, id="a part of a pass"),
        pytest.param(1.0, 1.0, id="one pass"),
        pytest.param(4.0, 3.7, id="nearly all of four"),
        pytest.param(16.4, 10.7, id="63 % of the decay constant's repetitions"),
        pytest.param(1000.0, 16.4, id="never more than the limit"),
    ],
)
def test_epochs_are_worth_less_the_more_there_are(epochs: float, worth: float) -> None:
    assert effective_epochs(epochs) == pytest.approx(worth, abs=0.05)


@pytest.mark.parametrize(
    ("loss", "training_loss", "epochs", "reason"),
    [
        pytest.param(2.0, 1.0, 0.9, None, id="each batch is new in the first epoch"),
        pytest.param(2.0, 1.9, 2.0, AdviceReason.SMALL_GAP, id="close"),
        pytest.param(1.8, 2.0, 2.0, AdviceReason.SMALL_GAP, id="below"),
        pytest.param(2.0, 1.5, 2.0, AdviceReason.LARGE_GAP, id="far above"),
    ],
)
def test_the_gap_between_the_losses_speaks_after_the_first_epoch(
    loss: float, training_loss: float, epochs: float, reason: AdviceReason | None
) -> None:
    advice = advise_generalisation(make_history([loss], [training_loss]), epochs=epochs)

    assert (advice.reason if advice else None) == reason


def test_without_a_validation_nothing_is_said_of_the_gap() -> None:
    assert advise_generalisation(make_history([]), epochs=3.0) is None


def test_a_gap_is_told_in_coarse_steps() -> None:
    messages = {
        advice.message
        for loss in (1.51, 1.6, 1.99)
        if (advice := advise_generalisation(make_history([loss], [1.0]), epochs=2.0))
    }

    assert len(messages) == 1
    assert "is 50 % or more above the training loss" in messages.pop()


@pytest.mark.parametrize(
    ("ratio", "percent"), [(-0.5, 0), (0.009, 0), (0.01, 1), (0.19, 10), (0.2, 20), (7.0, 500)]
)
def test_a_ratio_is_rounded_down_to_a_coarse_step(ratio: float, percent: int) -> None:
    assert coarse_percent(ratio) == percent

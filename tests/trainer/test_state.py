from __future__ import annotations

import pytest
import torch

from modelscaling_trainer.decoder import Decoder
from modelscaling_trainer.errors import CheckpointError
from modelscaling_trainer.optimizer import AdamW
from modelscaling_trainer.state import NOTHING, Counters, TrainingState
from tests.trainer.runs import make_run

RUN = make_run("unused")


@pytest.fixture
def state() -> TrainingState:
    model = Decoder(RUN.model, compute_dtype=torch.float32)
    return TrainingState(model, AdamW(model.parameters(), RUN.optimizer))


def test_a_state_holds_nothing_until_it_is_filled(state: TrainingState) -> None:
    assert state.step == NOTHING
    with pytest.raises(RuntimeError, match="before it was filled"):
        _ = state.counters
    state.initialise(seed=0)

    assert state.counters == Counters()


def test_a_step_that_was_torn_leaves_nothing(state: TrainingState) -> None:
    state.initialise(seed=0)
    with pytest.raises(MemoryError), state.changing(Counters(step=1)):
        raise MemoryError

    assert state.step == NOTHING


def test_the_first_weights_can_be_taken_again(state: TrainingState) -> None:
    state.initialise(seed=0)
    first = {name: tensor.clone() for name, tensor in state.tensors().items()}
    for tensor in state.tensors().values():
        tensor.add_(1.0)
    state.initialise(seed=0)

    assert all(torch.equal(first[name], tensor) for name, tensor in state.tensors().items())


def test_a_checkpoint_that_is_damaged_leaves_nothing(state: TrainingState) -> None:
    def fill(_: dict[str, torch.Tensor]) -> None:
        raise CheckpointError("damaged")

    state.initialise(seed=0)

    assert not state.load(fill, Counters(step=3))
    assert state.step == NOTHING


def test_the_clock_starts_once_and_useful_time_adds_up(state: TrainingState) -> None:
    state.initialise(seed=0)
    state.start_clock(100.0)
    state.start_clock(200.0)
    state.add_useful_seconds(1.5)
    state.add_useful_seconds(2.0)

    assert state.counters == Counters(useful_seconds=3.5, started_at=100.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_number_that_is_not_finite_shows(state: TrainingState, value: float) -> None:
    state.initialise(seed=0)
    assert state.is_finite()
    state.tensors()["exp_avg.norm.weight"][3] = value

    assert not state.is_finite()

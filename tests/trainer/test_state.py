from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pytest
import torch

from modelscaling.configuration import EarlyStoppingConfiguration
from modelscaling.validation_history import Validation
from modelscaling_trainer.errors import CheckpointError
from modelscaling_trainer.state import NOTHING, Counters, best_informed
from tests.shared.validations import OVERFITTING
from tests.trainer.parts import make_state
from tests.trainer.runs import make_run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelscaling_trainer.shard import Shard
    from modelscaling_trainer.state import TrainingState


@pytest.fixture
def state() -> TrainingState:
    return make_state(make_run("unused"))


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


def test_every_tensor_is_there_by_a_name_that_knows_no_mesh(state: TrainingState) -> None:
    names = state.shards().keys()

    assert "model.layers.1.self_attn.q_proj.weight" in names
    weights = {name.removeprefix("model.") for name in names if name.startswith("model.")}
    assert names == {
        f"{kind}.{name}" for kind in ("model", "exp_avg", "exp_avg_sq") for name in weights
    }


def test_the_first_weights_can_be_taken_again(state: TrainingState) -> None:
    state.initialise(seed=0)
    first = {name: shard.tensor.clone() for name, shard in state.shards().items()}
    for shard in state.shards().values():
        shard.tensor.add_(1.0)
    state.initialise(seed=0)

    assert all(torch.equal(first[name], shard.tensor) for name, shard in state.shards().items())


def test_a_checkpoint_fills_the_tensors_that_are_trained(state: TrainingState) -> None:
    def fill(shards: Mapping[str, Shard]) -> None:
        for shard in shards.values():
            shard.tensor.fill_(3.0)

    assert state.load(fill, Counters(step=3))
    assert state.step == 3
    for parameter in state.part.parameters.values():
        assert (parameter == 3.0).all()


def test_a_checkpoint_that_is_damaged_leaves_nothing(state: TrainingState) -> None:
    def fill(_: Mapping[str, Shard]) -> None:
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


def test_a_validation_is_remembered_with_the_mean_loss_of_the_steps_before_it(
    state: TrainingState,
) -> None:
    state.initialise(seed=0)
    with state.changing(Counters(step=2, loss_sum=9.0, loss_steps=2)):
        pass
    state.add_validation(4.0, None)

    assert state.counters.validations.recent == (Validation(step=2, loss=4.0, training_loss=4.5),)
    assert (state.counters.loss_sum, state.counters.loss_steps) == (0.0, 0)


@pytest.mark.parametrize(
    ("early_stopping", "without_improvement"),
    [
        pytest.param(None, 0, id="nobody waits"),
        pytest.param(EarlyStoppingConfiguration(patience=9, min_delta=0.0), 0, id="improves"),
        pytest.param(EarlyStoppingConfiguration(patience=9, min_delta=0.5), 1, id="by too little"),
    ],
)
def test_an_improvement_is_one_by_the_least_that_is_declared(
    state: TrainingState,
    early_stopping: EarlyStoppingConfiguration | None,
    without_improvement: int,
) -> None:
    state.initialise(seed=0)
    for loss in (4.0, 3.75):
        state.add_validation(loss, early_stopping)

    assert state.counters.validations.without_improvement == without_improvement


def test_counters_come_back_from_json_as_they_were() -> None:
    counters = Counters(step=60, loss_sum=1.5, loss_steps=2, validations=OVERFITTING)

    assert Counters.from_json(json.loads(json.dumps(asdict(counters)))) == counters


def test_counters_of_an_older_checkpoint_have_no_validations() -> None:
    old = {"step": 3, "tokens": 96, "sample_digest": "ab", "useful_seconds": 1, "started_at": None}

    assert Counters.from_json(old) == Counters(
        step=3, tokens=96, sample_digest="ab", useful_seconds=1.0
    )


def test_who_knows_the_validation_of_a_state_is_believed() -> None:
    lost_during_it = Counters(step=60, loss_sum=20.0, loss_steps=10)
    knows = Counters(step=60, validations=OVERFITTING, useful_seconds=2.0)
    knows_too = replace(knows, useful_seconds=3.0)

    assert best_informed([lost_during_it, knows, knows_too]) == knows

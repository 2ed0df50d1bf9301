from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from modelscaling_trainer.errors import CheckpointError
from modelscaling_trainer.state import NOTHING, Counters
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

"""What a process holds while it takes the state over."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
import torch.distributed as dist

from modelscaling.mesh import Mesh
from modelscaling_trainer import takeover
from modelscaling_trainer.becoming import become
from modelscaling_trainer.checkpoint import catalog
from modelscaling_trainer.checkpoint.writer import CheckpointWriter
from modelscaling_trainer.errors import CheckpointError, GroupLostError
from modelscaling_trainer.group import Group
from modelscaling_trainer.holdings import Holdings
from modelscaling_trainer.resumption import History
from modelscaling_trainer.settlement import Holding, Move, settle
from modelscaling_trainer.takeover import Identity, Taken, take_over
from tests.trainer.parts import make_state
from tests.trainer.runs import make_run

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import NoReturn

    from modelscaling.growth.trained_model import TrainedModel
    from modelscaling_trainer.shard import Shard
    from modelscaling_trainer.state import Counters, TrainingState

CPU = torch.device("cpu")
RUN = make_run("unused")


def make_group(mesh: Mesh) -> Group:
    return Group(
        generation=2, mesh=mesh, rank=0, local_rank=0, store_host="unused", store_port=None
    )


def state_at(step: int, *, seed: int) -> TrainingState:
    state = make_state(RUN)
    state.initialise(seed)
    with state.changing(replace(state.counters, step=step)):
        pass
    return state


def values(state: TrainingState) -> dict[str, torch.Tensor]:
    return {name: shard.tensor.clone() for name, shard in state.shards().items()}


def test_a_newcomer_that_dies_while_it_is_filled_takes_nothing_from_who_fills_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lose_peer(_: object) -> NoReturn:
        raise RuntimeError("gloo: Connection closed by peer")

    monkeypatch.setattr(dist, "P2POp", lambda *_: None)
    monkeypatch.setattr(dist, "batch_isend_irecv", lose_peer)
    state = state_at(100, seed=0)
    before, parts = values(state), state.parts()
    held = tuple(map(takeover._describe, parts))
    decision = settle([Holding(held=held), Holding()])
    assert isinstance(decision, Move)

    with pytest.raises(GroupLostError, match="while moving the state"):
        takeover._move(
            become(RUN, decision, None),
            make_group(Mesh(dataReplicate=2)),
            decision,
            state.counters,
            held=parts,
            new=state,
            device=CPU,
        )

    assert state.step == 100
    assert values(state).keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in values(state).items())


@pytest.mark.usefixtures("group_of_one")
def test_a_checkpoint_that_is_damaged_in_the_middle_is_not_taken_for_what_was_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = state_at(80, seed=1)
    for step in (80, 100):
        save(saved, replace(saved.counters, step=step), tmp_path)
    fail_in_the_middle(monkeypatch, step=100)
    holdings = Holdings()
    holdings.add(state_at(90, seed=0))

    taken = take(holdings, tmp_path)

    assert taken.state is not None
    assert taken.state.step == 80
    assert all(torch.equal(t, values(saved)[name]) for name, t in values(taken.state).items())


def save(state: TrainingState, counters: Counters, directory: Path) -> None:
    writer = CheckpointWriter(directory, keep=2, tokenizer=None)
    writer.begin_group("token", model=state.model, generation=1, rank=0, ranks=1)
    writer.save(state.shards(), counters, learning_rate=1e-3)
    writer.wait()


def fail_in_the_middle(monkeypatch: pytest.MonkeyPatch, *, step: int) -> None:
    load = catalog.Checkpoint.load

    def load_half(checkpoint: catalog.Checkpoint, shards: Mapping[str, Shard]) -> None:
        if checkpoint.counters.step == step:
            some = list(shards)[: len(shards) // 2]
            load(checkpoint, {name: shards[name] for name in some})
            raise CheckpointError("Input/output error")
        load(checkpoint, shards)

    monkeypatch.setattr(catalog.Checkpoint, "load", load_half)


def take(holdings: Holdings, directory: Path) -> Taken:
    group = make_group(Mesh())

    def place(model: TrainedModel) -> TrainingState:
        state = holdings.reusable(group, model)
        assert state is not None
        holdings.add(state)
        return state

    assert dist.group.WORLD is not None
    return take_over(
        Identity(configuration=RUN, last_step=1000, corpus="corpus", peak_flops=1.0),
        group,
        dist.group.WORLD,
        find_held=holdings.parts,
        place=place,
        history=History(),
        device=CPU,
        directory=directory,
    )

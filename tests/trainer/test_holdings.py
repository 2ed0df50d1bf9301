from __future__ import annotations

from typing import TYPE_CHECKING

from modelscaling.growth.lineage import Lineage
from modelscaling.growth.mode import GrowthMode
from modelscaling.growth.trained_model import TrainedModel
from modelscaling.mesh import Mesh
from modelscaling_trainer.group import Group
from modelscaling_trainer.holdings import Holdings
from tests.trainer.parts import make_state
from tests.trainer.runs import make_run

if TYPE_CHECKING:
    from modelscaling_trainer.state import TrainingState

RUN = make_run("unused")
MODEL = TrainedModel(shape=RUN.model)


def make_filled_state() -> TrainingState:
    state = make_state(RUN)
    state.initialise(seed=0)
    return state


def make_group(mesh: Mesh) -> Group:
    return Group(
        generation=2,
        mesh=mesh,
        rank=1,
        local_rank=0,
        store_host="127.0.0.1",
        store_port=4242,
    )


def test_a_process_holds_nothing_at_first() -> None:
    assert Holdings().parts() == []
    assert Holdings().reusable(make_group(Mesh(dataReplicate=2)), MODEL) is None


def test_a_model_that_was_made_beforehand_is_found_and_holds_nothing() -> None:
    holdings, made = Holdings(), make_state(RUN)
    holdings.add(made)

    assert holdings.reusable(make_group(Mesh(dataReplicate=2)), MODEL) is made
    assert holdings.parts() == []


def test_copies_of_the_model_fit_any_number_of_copies_and_no_cut() -> None:
    holdings, state = Holdings(), make_filled_state()
    holdings.add(state)

    assert holdings.reusable(make_group(Mesh(dataReplicate=5)), MODEL) is state
    assert holdings.reusable(make_group(Mesh(dataShard=2)), MODEL) is None
    assert holdings.reusable(make_group(Mesh(pipeline=2)), MODEL) is None


def test_both_states_are_held_until_the_group_has_what_it_needs() -> None:
    holdings, before, after = Holdings(), make_filled_state(), make_state(RUN)
    holdings.add(before)
    holdings.add(after)
    assert len(holdings.parts()) == 1
    after.initialise(seed=0)
    assert len(holdings.parts()) == 2
    holdings.keep_only(after)

    [part] = holdings.parts()
    name = "model.norm.weight"
    assert part.shards[name].tensor.data_ptr() == after.shards()[name].tensor.data_ptr()


def test_a_state_that_was_never_filled_goes_when_the_next_one_comes() -> None:
    holdings, before, torn = Holdings(), make_filled_state(), make_state(RUN)
    holdings.add(before)
    holdings.add(torn)
    holdings.add(make_state(RUN))

    assert len(holdings.parts()) == 1
    torn.initialise(seed=0)
    assert len(holdings.parts()) == 1


def test_torn_states_can_be_dropped_before_the_next_one_is_made() -> None:
    holdings, torn = Holdings(), make_state(RUN)
    holdings.add(make_filled_state())
    holdings.add(torn)

    assert holdings.drop_torn()
    torn.initialise(seed=0)

    assert len(holdings.parts()) == 1
    assert not holdings.drop_torn()


def test_adding_the_state_that_is_trained_already_holds_it_once() -> None:
    holdings, state = Holdings(), make_filled_state()
    holdings.add(state)
    holdings.add(state)

    assert len(holdings.parts()) == 1


def test_a_process_that_leaves_holds_nothing_any_more() -> None:
    holdings = Holdings()
    holdings.add(make_filled_state())
    holdings.keep_only(None)

    assert holdings.parts() == []


def test_a_model_of_the_same_shape_that_has_grown_is_another() -> None:
    holdings = Holdings()
    holdings.add(make_filled_state())
    lineage = Lineage().grown(RUN.model, step=3, mode=GrowthMode.PRESERVE)
    grown = TrainedModel(shape=RUN.model, lineage=lineage)

    assert holdings.reusable(make_group(Mesh(dataReplicate=2)), grown) is None


def test_what_is_retired_is_offered_and_not_trained_again() -> None:
    holdings, state = Holdings(), make_filled_state()
    holdings.add(state)
    holdings.retire()

    assert [part.model for part in holdings.parts()] == [MODEL]
    assert holdings.reusable(make_group(Mesh(dataReplicate=2)), MODEL) is None
    holdings.keep_only(None)
    assert holdings.parts() == []


def test_what_was_before_is_still_offered_when_what_came_of_it_is_dropped() -> None:
    holdings, before, grown = Holdings(), make_filled_state(), make_filled_state()
    holdings.add(before)
    holdings.retire()
    holdings.add(grown)
    assert len(holdings.parts()) == 2
    holdings.drop(grown)
    holdings.retire()

    [part] = holdings.parts()
    name = "model.norm.weight"
    assert part.shards[name].tensor.data_ptr() == before.shards()[name].tensor.data_ptr()

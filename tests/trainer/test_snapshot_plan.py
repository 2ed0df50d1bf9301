from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscaling.mesh import Mesh
from modelscaling_trainer.copies import place_in_copy
from modelscaling_trainer.snapshot_plan import SHARE, Cadence, Partners, partners, pods_of
from tests.shared.workloads import meshes

if TYPE_CHECKING:
    from collections.abc import Iterable

FSDP4 = Mesh(dataShard=4)
DP2_PP2 = Mesh(pipeline=2, dataReplicate=2)


@pytest.mark.parametrize(
    ("local_ranks", "pods"),
    [
        pytest.param([0, 0, 0], [0, 1, 2], id="one process each"),
        pytest.param([0, 1, 0, 1], [0, 0, 1, 1], id="two processes each"),
        pytest.param([0, 1, 2], [0, 0, 0], id="a single pod"),
        pytest.param([0, 1, 2, 0], [0, 0, 0, 1], id="pods of different sizes"),
    ],
)
def test_a_pods_processes_follow_one_another(local_ranks: list[int], pods: list[int]) -> None:
    assert pods == pods_of(local_ranks)


@pytest.mark.parametrize(
    ("mesh", "pods", "expected"),
    [
        pytest.param(FSDP4, [0, 1, 2, 3], Partners(1, 3), id="the next pod keeps it"),
        pytest.param(FSDP4, [0, 0, 1, 1], Partners(2, 2), id="past the neighbour in the pod"),
        pytest.param(FSDP4, [0, 0, 0, 0], Partners(1, 3), id="in the pod, where there is but one"),
        pytest.param(FSDP4, [0, 0, 0, 1], Partners(1, 3), id="no distance leads out of all pods"),
        pytest.param(Mesh(), [0], None, id="nobody could keep it"),
        pytest.param(Mesh(dataReplicate=2), [0, 1], None, id="copies are enough"),
        pytest.param(Mesh(dataReplicate=2), [0, 0], None, id="a process of a pod with copies"),
        pytest.param(DP2_PP2, [0, 1, 2, 3], None, id="each stage in two pods"),
        pytest.param(DP2_PP2, [0, 0, 1, 1], Partners(2, 2), id="both copies of a stage in one pod"),
    ],
)
def test_the_first_rank_has_partners_where_a_loss_would_take_the_only_copy(
    mesh: Mesh, pods: list[int], expected: Partners | None
) -> None:
    assert expected == partners(mesh, 0, pods)


def places_of(mesh: Mesh, ranks: Iterable[int]) -> set[int]:
    """Return which shards these ranks hold, copies counted as one."""
    return {place_in_copy(mesh, rank)[1] for rank in ranks}


@settings(deadline=None)
@given(mesh=meshes(), pod_size=st.integers(1, 3))
def test_whatever_pod_is_lost_the_others_hold_all_shards(mesh: Mesh, pod_size: int) -> None:
    pods = [rank // pod_size for rank in range(mesh.size)]
    places = [partners(mesh, rank, pods) for rank in range(mesh.size)]
    whole = places_of(mesh, range(mesh.size))

    assert len({place is None for place in places}) == 1
    for lost in set(pods):
        left = [rank for rank in range(mesh.size) if pods[rank] != lost]
        kept = [place.ward for rank in left if (place := places[rank])]
        # The parts of a lone pod go with it, and those of a last one that is smaller than the
        # others may be kept in their own.
        is_even = mesh.size % pod_size == 0
        assert places_of(mesh, left + kept) == whole or len(set(pods)) == 1 or not is_even


@settings(deadline=None)
@given(mesh=meshes())
def test_who_keeps_a_part_knows_whose_it_is(mesh: Mesh) -> None:
    pods = list(range(mesh.size))
    places = [partners(mesh, rank, pods) for rank in range(mesh.size)]

    for rank, place in enumerate(places):
        keeper = place and places[place.keeper]
        assert keeper is None or keeper.ward == rank


@pytest.mark.parametrize(
    ("cost", "step", "steps_between"),
    [
        pytest.param(0.001, 1.0, 1, id="it costs nearly nothing"),
        pytest.param(0.5, 1.0, 25, id="half a step"),
        pytest.param(3.0, 0.5, 300, id="several steps"),
    ],
)
def test_snapshots_take_their_share_of_the_time_and_no_more(
    cost: float, step: float, steps_between: int
) -> None:
    cadence = Cadence()
    cadence.add_step(step_seconds=0.0, cost_seconds=0.0)
    assert cadence.is_due
    cadence.restart()
    taken = []
    for number in range(1, 3 * steps_between + 1):
        cadence.add_step(step_seconds=step, cost_seconds=cost)
        if cadence.is_due:
            taken.append(number)
            cadence.restart()

    assert taken == [steps_between, 2 * steps_between, 3 * steps_between]
    assert len(taken) * cost <= SHARE * 3 * steps_between * step


def test_a_snapshot_that_costs_more_than_the_last_is_taken_later() -> None:
    cadence = Cadence()
    cadence.restart()
    cadence.add_step(step_seconds=10.0, cost_seconds=0.2)
    assert cadence.is_due

    cadence.add_step(step_seconds=10.0, cost_seconds=0.5)

    assert not cadence.is_due


def test_a_group_takes_its_first_snapshot_whatever_those_of_an_earlier_group_cost() -> None:
    cadence = Cadence()

    cadence.add_step(step_seconds=0.1, cost_seconds=5.0)

    assert cadence.is_due

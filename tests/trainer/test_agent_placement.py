from __future__ import annotations

import pytest

from modelscaling.mesh import Mesh
from modelscaling_trainer.agent.placement import NotAMemberError, place
from tests.trainer.agent_builders import make_assignment


@pytest.mark.parametrize(
    ("processes", "index", "first_rank"),
    [
        pytest.param((1,), 0, 0, id="a pod alone"),
        pytest.param((1, 1, 1), 2, 2, id="one process in each pod"),
        pytest.param((2, 2), 1, 2, id="two processes in each pod"),
        pytest.param((3, 1, 2), 2, 4, id="uneven pods"),
    ],
)
def test_ranks_follow_the_members_order(
    processes: tuple[int, ...], index: int, first_rank: int
) -> None:
    placement = place(make_assignment(*processes), index=index, processes=processes[index])

    assert placement.first_rank == first_rank
    assert placement.is_leader == (first_rank == 0)
    assert placement.leader.index == 0


def test_the_order_of_members_and_not_their_index_gives_the_rank() -> None:
    assignment = make_assignment(1, 1)
    turned = assignment.model_copy(update={"members": assignment.members[::-1]})

    assert place(turned, index=1, processes=1).first_rank == 0
    assert place(turned, index=0, processes=1).leader.index == 1


@pytest.mark.parametrize(
    ("index", "first_rank", "is_leaver"),
    [
        pytest.param(0, 0, False, id="the first member"),
        pytest.param(1, 2, False, id="the last member"),
        pytest.param(2, 3, True, id="the first that leaves"),
        pytest.param(3, 6, True, id="the last that leaves"),
    ],
)
def test_pods_that_leave_follow_the_members(
    index: int, first_rank: int, *, is_leaver: bool
) -> None:
    processes = (2, 1, 3, 1)
    assignment = make_assignment(*processes, leaving=2)

    placement = place(assignment, index=index, processes=processes[index])

    assert (placement.first_rank, placement.is_leaver) == (first_rank, is_leaver)
    assert placement.leavers == 4
    assert [pod.index for pod in placement.pods] == [0, 1, 2, 3]


def test_a_pod_that_is_not_listed_has_no_place() -> None:
    with pytest.raises(NotAMemberError, match=r"not among the members \[0\] nor .* \[1\]"):
        place(make_assignment(1, 1, leaving=1), index=5, processes=1)


def test_a_pod_with_another_number_of_processes_has_no_place() -> None:
    with pytest.raises(NotAMemberError, match="is to have 2 processes and the pod has 1"):
        place(make_assignment(2, 2), index=0, processes=1)


def test_a_mesh_of_another_size_is_refused() -> None:
    assignment = make_assignment(1, 1).model_copy(update={"mesh": Mesh(dataReplicate=3)})

    with pytest.raises(NotAMemberError, match="dp3 has 3 processes and the members have 2"):
        place(assignment, index=0, processes=1)

"""Where a pod's workers sit in a group: ranks follow the members' order, then the leaving pods'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelscaling.protocol import GroupAssignment, Member


class NotAMemberError(ValueError):
    """The pod has no place in the assignment, or the assignment contradicts itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One pod's place in a group."""

    assignment: GroupAssignment
    first_rank: int
    """The rank of the pod's worker 0; the others follow it."""

    @property
    def leader(self) -> Member:
        """The member whose first worker hosts the group's store."""
        return self.assignment.members[0]

    @property
    def is_leader(self) -> bool:
        """Whether this pod is the one that hosts the store."""
        return self.first_rank == 0

    @property
    def is_leaver(self) -> bool:
        """Whether this pod only hands over what it holds, and ends."""
        return self.first_rank >= self.assignment.mesh.size

    @property
    def leavers(self) -> int:
        """The number of processes that only hand over what they hold."""
        return sum(pod.processes for pod in self.assignment.leaving)

    @property
    def pods(self) -> tuple[Member, ...]:
        """All that meet, in the order of their ranks."""
        return (*self.assignment.members, *self.assignment.leaving)


def place(assignment: GroupAssignment, *, index: int, processes: int) -> Placement:
    """Return the place of pod `index`, which has `processes` workers.

    Raises:
        NotAMemberError: the pod has no such place.
    """
    total = sum(member.processes for member in assignment.members)
    if total != assignment.mesh.size:
        raise NotAMemberError(
            f"the mesh {assignment.mesh} has {assignment.mesh.size} processes and the members have "
            f"{total}; they must be equal"
        )
    first_rank = 0
    for pod in (*assignment.members, *assignment.leaving):
        if pod.index == index:
            break
        first_rank += pod.processes
    else:
        raise NotAMemberError(
            f"index {index} is not among the members "
            f"{[member.index for member in assignment.members]} nor among those that leave "
            f"{[pod.index for pod in assignment.leaving]}"
        )
    if pod.processes != processes:
        raise NotAMemberError(
            f"member {index} is to have {pod.processes} processes and the pod has {processes}; "
            f"replace the pod"
        )
    return Placement(assignment=assignment, first_rank=first_rank)

"""Where a pod's workers sit in a group: ranks follow the members' order."""

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
    for member in assignment.members:
        if member.index == index:
            break
        first_rank += member.processes
    else:
        raise NotAMemberError(
            f"index {index} is not among the members "
            f"{[member.index for member in assignment.members]}"
        )
    if member.processes != processes:
        raise NotAMemberError(
            f"member {index} is to have {member.processes} processes and the pod has {processes}; "
            f"replace the pod"
        )
    return Placement(assignment=assignment, first_rank=first_rank)

"""Who keeps whose part of the state in memory, and how often: pure functions of the group.

Where every shard is held in more than one pod, a pod that is lost takes nothing with it. Where it
is not, each process keeps a copy of its own part and one of another's, of the same step. All ranks
decide alike, from what they know of each other.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelscaling_trainer.copies import place_in_copy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelscaling.mesh import Mesh

SHARE = 0.02
"""The part of the time that snapshots may take."""


@dataclass(frozen=True, slots=True)
class Partners:
    """Whose copies one rank exchanges."""

    keeper: int
    """The rank that keeps this rank's part."""
    ward: int
    """The rank whose part this one keeps."""


def pods_of(local_ranks: Sequence[int]) -> list[int]:
    """Return which pod each rank is in: a pod's processes follow one another, counted from 0."""
    pods: list[int] = []
    for local_rank in local_ranks:
        last = pods[-1] if pods else -1
        pods.append(last + 1 if local_rank == 0 else last)
    return pods


def partners(mesh: Mesh, rank: int, pods: Sequence[int]) -> Partners | None:
    """Return a rank's partners; None where the group can do without snapshots, or has nobody to
    keep them.

    All ranks' parts go equally far: to another pod where one distance does that for all, else the
    distance that leaves the fewest in their own.
    """
    if mesh.size == 1 or _survives_any_loss(mesh, pods):
        return None
    distance = _distance(pods)
    return Partners(keeper=(rank + distance) % mesh.size, ward=(rank - distance) % mesh.size)


def _survives_any_loss(mesh: Mesh, pods: Sequence[int]) -> bool:
    """Whether the others hold all of the state whichever pod is lost; whichever process, where
    there is one pod.
    """
    units = pods if len(set(pods)) > 1 else range(mesh.size)
    holders: dict[int, set[int]] = defaultdict(set)
    for rank, unit in enumerate(units):
        holders[place_in_copy(mesh, rank)[1]].add(unit)
    return all(len(units) > 1 for units in holders.values())


def _distance(pods: Sequence[int]) -> int:
    fewest, best = len(pods) + 1, 1
    for distance in range(1, len(pods)):
        stay = sum(pod == pods[(rank + distance) % len(pods)] for rank, pod in enumerate(pods))
        if stay == 0:
            return distance
        if stay < fewest:
            fewest, best = stay, distance
    return best


class Cadence:
    """When snapshots are due in one group: first after its first step, then whenever the time
    trained since is so much that they take their share of it and no more.
    """

    def __init__(self) -> None:
        """Begin a group."""
        self._trained_seconds = 0.0
        # That of an earlier group's snapshots may be known before this group has taken one.
        self._cost_seconds = 0.0
        self._has_taken = False

    def add_step(self, *, step_seconds: float, cost_seconds: float) -> None:
        """Take the time of a step and that of the last snapshot, both agreed by all ranks."""
        self._trained_seconds += step_seconds
        self._cost_seconds = cost_seconds

    @property
    def is_due(self) -> bool:
        """Whether a snapshot is to be taken at this step boundary."""
        return not self._has_taken or self._trained_seconds * SHARE >= self._cost_seconds

    def restart(self) -> None:
        """Count anew: one was taken."""
        self._has_taken = True
        self._trained_seconds = 0.0

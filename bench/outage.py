"""Changes of a running job, in the order in which every contender goes through them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """What a change cost."""

    seconds: float
    """Without a step: of a planned change from the end of the last step before it, of a failure
    from the failure itself, in both cases to the beginning of the first step of the new group."""
    steps_again: int
    """Steps that were done before and had to be done again."""


class Change(Enum):
    """What happens to a running job; the value is what the report calls it."""

    WORKER_KILLED = "a worker killed, dp2"
    JOIN = "a pod joins, dp2 to dp3"
    POD_KILLED = "a pod killed, dp3 to dp2"
    REPLACEMENT = "its replacement, from its start to its first step"
    NODE_LOST = "a node lost without a word, dp3 to dp2"
    LEAVE = "a pod leaves, dp3 to dp2"
    MESH = "the mesh changes, dp2 to fsdp2"
    SHARDED_WORKER_KILLED = "a worker killed, fsdp2"

    @property
    def most_seconds(self) -> float:
        """What ours may take."""
        return _MOST_SECONDS[self]


_MOST_SECONDS = {
    Change.WORKER_KILLED: 1.0,
    Change.JOIN: 0.5,
    Change.POD_KILLED: 1.0,
    Change.REPLACEMENT: 10.0,
    Change.NODE_LOST: 3.0,
    Change.LEAVE: 0.5,
    Change.MESH: 0.5,
    Change.SHARDED_WORKER_KILLED: 1.0,
}


class Job(Protocol):
    """A job of two pods with one worker each, which trains.

    What returns an outage returns once the job trains on, and raises TimeoutError where it does not
    come to that.
    """

    def steps(self) -> int:
        """Return how many steps it has done."""
        ...

    def kill_a_worker(self, pod: int) -> None:
        """Kill a pod's worker, if it has one just now, and don't wait."""
        ...

    def kill_worker(self) -> Outage:
        """Kill the last pod's worker, and wait until all train again."""
        ...

    def join(self) -> tuple[Outage, float]:
        """Start a pod; return the outage, and the seconds from its start to its first step."""
        ...

    def leave(self) -> Outage:
        """Let the last pod leave as it is meant to."""
        ...

    def kill_pod(self) -> Outage:
        """Kill all processes of the last pod."""
        ...

    def lose_node(self) -> Outage:
        """Stop all processes of the last pod: its connections stay open, nothing answers."""
        ...

    def shard(self) -> Outage:
        """Go over from two copies of the model to two halves of it."""
        ...


def tour(job: Job) -> Iterator[tuple[Change, Outage]]:
    """Lead a job of two pods through every change."""
    yield Change.WORKER_KILLED, job.kill_worker()
    yield Change.JOIN, job.join()[0]
    yield Change.POD_KILLED, job.kill_pod()
    outage, seconds = job.join()
    yield Change.REPLACEMENT, Outage(seconds=seconds, steps_again=outage.steps_again)
    yield Change.NODE_LOST, job.lose_node()
    job.join()
    yield Change.LEAVE, job.leave()
    yield Change.MESH, job.shard()
    yield Change.SHARDED_WORKER_KILLED, job.kill_worker()

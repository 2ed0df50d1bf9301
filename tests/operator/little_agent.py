"""A little agent for the world in memory: it obeys, fences and forms as `modelscaling.protocol`
says, and holds a part of the run's state, so that a part that nobody hands over is missed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from modelscaling.protocol import AgentState, AgentStatus, StopMode, TerminationReport

if TYPE_CHECKING:
    from modelscaling.protocol import (
        Failure,
        GroupAssignment,
        GrowthRejection,
        LateWorker,
        OpenedData,
        Progress,
    )


class Part(NamedTuple):
    """A part of the state after a step."""

    step: int
    part: int
    parts: int


@dataclass(slots=True)
class LittleAgent:
    """One pod's agent."""

    run_uid: str
    index: int
    state: AgentState = AgentState.WARM
    generation: int = 0
    attempt: int = 0
    assignment: GroupAssignment | None = None
    progress: Progress | None = None
    failure: Failure | None = None
    growth_rejection: GrowthRejection | None = None
    worker_failures: int = 0
    is_leaving: bool = False
    lost: tuple[int, ...] = ()
    unreachable: tuple[int, ...] = ()
    late: tuple[LateWorker, ...] = ()
    data: OpenedData | None = None
    held: frozenset[Part] = frozenset()
    stop_mode: StopMode | None = None
    saves: bool = False
    """Whether it trained when it was told to stop, and has where to save."""
    version: int = 0
    _told: AgentStatus | None = field(default=None, repr=False)

    def status(self) -> AgentStatus:
        """Return what it says; the version grows with all but progress."""
        said = AgentStatus(
            run_uid=self.run_uid,
            index=self.index,
            state=self.state,
            generation=self.generation,
            assignment_digest=self.assignment.digest() if self.assignment else None,
            failure=self.failure,
            growth_rejection=self.growth_rejection,
            attempt=self.attempt,
            worker_failures=self.worker_failures,
            is_leaving=self.is_leaving,
            lost=self.lost,
            unreachable=self.unreachable,
            late=self.late,
            data=self.data,
        )
        if said != self._told:
            self._told = said
            self.version += 1
        return said.model_copy(update={"progress": self.progress, "version": self.version})

    def assign(self, assignment: GroupAssignment) -> bool:
        """Obey a newer number; whether it did, or had obeyed it before."""
        places = (*assignment.members, *assignment.leaving)
        assert self.index in {member.index for member in places}, "told without a place"
        if assignment.generation == self.generation:
            return self.assignment is not None and self.assignment.digest() == assignment.digest()
        if assignment.generation < self.generation or self.stop_mode:
            return False
        self.generation = assignment.generation
        self.assignment = assignment
        self.attempt = 0
        self.lost = ()
        self.failure = None
        self.growth_rejection = None
        self.state = AgentState.FORMING
        return True

    def stop(self, generation: int, mode: StopMode) -> None:
        """Save at the next step boundary, and end."""
        if generation >= self.generation:
            self.saves = self.saves or (self.state is AgentState.TRAINING and self._has_volume)
            self.stop_mode = mode
            self.state = AgentState.STOPPING

    @property
    def _has_volume(self) -> bool:
        return self.assignment is not None and self.assignment.configuration.checkpoint is not None

    @property
    def is_leader(self) -> bool:
        return self.assignment is not None and self.assignment.members[0].index == self.index

    @property
    def is_in_group(self) -> bool:
        return self.state in {AgentState.FORMING, AgentState.TRAINING}

    def report(self, failure: Failure | None = None) -> TerminationReport:
        """Return what it leaves behind."""
        return TerminationReport(
            generation=self.generation, progress=self.progress, failure=failure or self.failure
        )

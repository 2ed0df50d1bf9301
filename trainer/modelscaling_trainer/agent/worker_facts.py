"""What an agent knows of one of its workers, and how what the worker says and is told changes it.

A worker that has ended is replaced by another process; the facts stay those of its place in the
pod, so that the replacement joins what the one before had not finished.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from modelscaling_trainer.agent.back_off import back_off_s
from modelscaling_trainer.worker_protocol import (
    Abandon,
    Alive,
    Ask,
    DataOpened,
    GroupEnded,
    GroupLost,
    GrowthRejected,
    Join,
    PhaseBegan,
    Prepare,
    Warm,
    WorkerFailed,
)

if TYPE_CHECKING:
    from modelscaling_trainer.agent.placement import Placement
    from modelscaling_trainer.request import Outcome, Request
    from modelscaling_trainer.worker_protocol import Command, Event


FORMING_PHASES = frozenset({None, "Forming", "Loading"})
"""What a worker does in a group before it has taken over what that goes on with."""


class WorkerState(StrEnum):
    """What a worker is doing."""

    STARTING = "Starting"
    IDLE = "Idle"
    BUSY = "Busy"
    """In a group, or on its way into one."""
    GONE = "Gone"
    """Its process has ended or cannot go on, and there is no other yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts:
    """One worker."""

    state: WorkerState = WorkerState.STARTING
    generation: int = 0
    """The newest group that it was told to join."""
    attempt: int = 0
    """Which attempt to form that group it was told to join."""
    placement: Placement | None = None
    """Its pod's place in that group."""
    phase: str | None = None
    """What it does in that group."""
    asked: frozenset[Request] = frozenset()
    """What it was asked in that group."""
    outcome: Outcome | None = None
    """How that group ended, if it ended well."""
    may_hold_steps: bool = False
    """Whether it may hold steps that are saved nowhere, its own or what it has taken over."""
    broken_because: str | None = None
    """Why the group that it is in cannot go on; None as far as is known."""
    is_abandoning: bool = False
    """Whether it was told to leave that group at once."""
    failed_starts: int = 0
    """How many of its processes in a row ended before they were warm."""

    @property
    def start_delay_s(self) -> float:
        """How long to wait before another process is started in its place."""
        return back_off_s(self.failed_starts)

    def is_busy_in(self, generation: int, attempt: int) -> bool:
        """Whether it is in that attempt to form that group, or in one before."""
        return (
            self.state is WorkerState.BUSY
            and self.generation == generation
            and self.attempt <= attempt
        )

    def after_loss(self) -> WorkerFacts:
        """Return what is known once its process has ended or cannot go on."""
        was_starting = self.state is WorkerState.STARTING
        return WorkerFacts(
            state=WorkerState.GONE,
            generation=self.generation,
            attempt=self.attempt,
            placement=self.placement,
            outcome=self.outcome,
            failed_starts=self.failed_starts + 1 if was_starting else 0,
        )

    def told(self, command: Command, *, placement: Placement | None) -> WorkerFacts:
        """Return what is known after a command was sent; `placement` is the pod's in the group
        that it is told to join.
        """
        match command:
            case Join(generation=generation, attempt=attempt):
                return WorkerFacts(
                    state=WorkerState.BUSY,
                    generation=generation,
                    attempt=attempt,
                    placement=placement,
                    may_hold_steps=self.may_hold_steps,
                )
            case Ask(request=request):
                return replace(self, asked=self.asked | {request})
            case Abandon(why=why):
                return replace(self, broken_because=why, is_abandoning=True)
            case Prepare():
                return self

    def heard(self, event: Event) -> WorkerFacts:
        """Return what is known after it has said something."""
        match event:
            case Warm():
                return replace(self, state=WorkerState.IDLE, failed_starts=0)
            case PhaseBegan(phase=phase):
                may_hold_steps = self.may_hold_steps or phase not in FORMING_PHASES
                return replace(self, phase=phase, may_hold_steps=may_hold_steps)
            case GroupEnded(outcome=outcome):
                return replace(self._idle(), outcome=outcome)
            case GroupLost() | GrowthRejected():
                return self._idle()
        return self

    def is_old(self, event: Event) -> bool:
        """Whether an event is about a group that it is not in any more."""
        match event:
            case DataOpened() | Warm() | WorkerFailed() | Alive():
                return False
            case _:
                return (event.generation, event.attempt) != (self.generation, self.attempt)

    def _idle(self) -> WorkerFacts:
        return replace(
            self, state=WorkerState.IDLE, phase=None, broken_because=None, is_abandoning=False
        )

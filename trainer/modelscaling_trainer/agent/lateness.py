"""Which workers do not come on, and which of them will not any more: pure rules over the times at
which an agent heard of them.

A worker is late if its step takes much longer than its steps usually do. It hangs if that goes on,
unless it says that it waits for its peers: then one of those is the culprit, and is judged by its
own agent. What takes long by its nature (forming a group, loading, validating, compiling, saving,
the first steps of a group) has a limit of its own, as no usual time is known for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from modelscaling.protocol import LateWorker
from modelscaling_trainer.worker_protocol import (
    Abandon,
    Alive,
    FiguresTaken,
    GroupEnded,
    GroupLost,
    GrowthRejected,
    Join,
    PhaseBegan,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from modelscaling_trainer.worker_protocol import Command, Event

_TRAINING = "Training"
_STEPS_KEPT = 16
"""Of so many last steps the usual time is taken."""
_STEPS_NEEDED = 3
"""Of fewer it is not known: a group's first step takes longer than the others."""
_IS_WAITING_FOR_S = 5.0
"""How long a worker's word that it waits for its peers holds: some of its messages."""
_STUCK_AFTER_S = 5.0
"""Since a worker was told to leave its group, and says that it waits for its peers: its connections
were cut, which ends any wait at once but for those that gloo forgets (`lost_sends.py`)."""
_LOOK_AGAIN_S = 1.0
"""How often a worker that is late is looked at, so that the seconds told of it are true."""


class _Limits(NamedTuple):
    """Seconds after which something is said or done of a worker."""

    late: float
    """Without a step or a new phase: it is late."""
    hung: float
    """The same, while it does not wait for its peers: it is given up."""
    silent: float
    """Without a message: it is given up, whatever it last said."""
    obstinate: float
    """Since it was told to leave its group and has not: it is given up."""


_PATIENT = _Limits(late=600.0, hung=1800.0, silent=300.0, obstinate=60.0)
"""Where no usual time is known. The interpreter may not come to send anything while a library
reads a large file or builds an extension."""
_SHORTEST = _Limits(late=20.0, hung=60.0, silent=60.0, obstinate=20.0)
"""However short the steps are."""
_TIMES_USUAL = _Limits(late=10.0, hung=20.0, silent=20.0, obstinate=10.0)
"""The same in usual step times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How a worker comes on. Times are the event loop's, in seconds."""

    group: tuple[int, int] | None = None
    """Generation and attempt of the group that it is in; None while it waits for one."""
    rank: int = 0
    """Its rank in that group."""
    phase: str | None = None
    """What it does in that group."""
    step: int = 0
    """Optimizer steps that it has done."""
    advanced_at: float = 0.0
    """When it did the last of them, or last began something else."""
    alive_at: float = 0.0
    """When it last said anything."""
    is_waiting: bool = False
    """Whether it said then that it waits for its peers."""
    told_to_leave_at: float | None = None
    """When it was first told to leave that group at once."""
    trained_s: float = 0.0
    """How long it had trained after that step until `advanced_at`, between validations and such."""
    step_seconds: tuple[float, ...] = ()
    """What its last steps took in that group."""

    def told(self, command: Command, *, now: float) -> Pace:
        """Return the pace after a command was sent to the worker."""
        match command:
            case Join(generation=generation, attempt=attempt, rank=rank):
                return Pace(
                    group=(generation, attempt),
                    rank=rank,
                    step=self.step,
                    advanced_at=now,
                    alive_at=now,
                )
            case Abandon() if self.told_to_leave_at is None:
                return replace(self, told_to_leave_at=now)
        return self

    def heard(self, event: Event, *, now: float) -> Pace:
        """Return the pace after the worker has said something; what it says of an older group
        shows only that it lives.
        """
        pace = replace(self, alive_at=now)
        match event:
            case Alive(is_waiting=is_waiting):
                return replace(pace, is_waiting=is_waiting)
            case PhaseBegan() | FiguresTaken() | GroupEnded() | GroupLost() | GrowthRejected():
                is_of_group = (event.generation, event.attempt) == self.group
                return _after(pace, event) if is_of_group else pace
        return pace


class Hung(NamedTuple):
    """A worker to give up."""

    local_rank: int
    message: str
    """A sentence for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lateness:
    """What is to be said and done of a pod's workers."""

    late: tuple[LateWorker, ...]
    """Without those that are to be given up."""
    hung: tuple[Hung, ...]
    wake_at: float | None
    """When to judge again if nothing happens; None while there is nobody to judge."""


def judge_lateness(paces: Sequence[Pace], *, now: float) -> Lateness:
    """Return which workers are late and which hang; they are in the order of their local ranks."""
    busy = [(local_rank, pace) for local_rank, pace in enumerate(paces) if pace.group is not None]
    hung = tuple(
        Hung(local_rank, message)
        for local_rank, pace in busy
        if (message := _why_hung(pace, now)) is not None
    )
    given_up = {local_rank for local_rank, _ in hung}
    others = [pace for local_rank, pace in busy if local_rank not in given_up]
    return Lateness(
        late=tuple(_late_worker(pace, now) for pace in others if _is_late(pace, now)),
        hung=hung,
        wake_at=min((_next_look(pace, now) for pace in others), default=None),
    )


def _after(
    pace: Pace, event: PhaseBegan | FiguresTaken | GroupEnded | GroupLost | GrowthRejected
) -> Pace:
    """Return the pace after the worker has said something of its present group just now."""
    now = pace.alive_at
    trained_s = pace.trained_s + (now - pace.advanced_at if pace.phase == _TRAINING else 0.0)
    match event:
        case PhaseBegan(phase=phase):
            return replace(pace, phase=phase, advanced_at=now, trained_s=trained_s)
        case FiguresTaken(figures=figures):
            last_ones = pace.step_seconds[1 - _STEPS_KEPT :]
            return replace(
                pace,
                step=figures.step,
                advanced_at=now,
                trained_s=0.0,
                step_seconds=(*last_ones, trained_s),
            )
    return Pace(step=pace.step, alive_at=now)


def _limits(pace: Pace) -> _Limits:
    if pace.phase != _TRAINING or len(pace.step_seconds) < _STEPS_NEEDED:
        return _PATIENT
    usual = median(pace.step_seconds)
    return _Limits(
        *(
            max(shortest, times * usual)
            for shortest, times in zip(_SHORTEST, _TIMES_USUAL, strict=True)
        )
    )


def _is_late(pace: Pace, now: float) -> bool:
    return now - pace.advanced_at >= _limits(pace).late


def _late_worker(pace: Pace, now: float) -> LateWorker:
    return LateWorker(
        rank=pace.rank,
        step=pace.step,
        seconds=now - pace.advanced_at,
        is_waiting=_says_that_it_waits(pace, now),
    )


def _says_that_it_waits(pace: Pace, now: float) -> bool:
    return pace.is_waiting and now - pace.alive_at < _IS_WAITING_FOR_S


def _why_hung(pace: Pace, now: float) -> str | None:
    limits, who = _limits(pace), f"rank {pace.rank}"
    silent_s, stuck_s = now - pace.alive_at, now - pace.advanced_at
    unheard = f"{who} was not heard of for {silent_s:.0f} s; its process may be stopped"
    if silent_s >= limits.silent:
        return unheard
    told_at = pace.told_to_leave_at
    if told_at is not None:
        # One that was stopped before it heard says nothing, and may yet leave.
        is_stuck = _says_that_it_waits(pace, now) and pace.alive_at > told_at
        if now - told_at >= (_STUCK_AFTER_S if is_stuck else limits.obstinate):
            return f"{who} did not leave its group within {now - told_at:.0f} s of being told to"
    if stuck_s >= limits.hung and not pace.is_waiting:
        if silent_s >= _IS_WAITING_FOR_S:
            return unheard  # whatever it did last
        return (
            f"{who} has not come beyond step {pace.step} ({pace.phase}) for {stuck_s:.0f} s, and "
            f"does not wait for its peers"
        )
    return None


def _next_look(pace: Pace, now: float) -> float:
    """Return when the worker may be judged otherwise than now, or its seconds are to be told
    again.
    """
    ahead = [time for time in _deadlines(pace) if time > now]
    if _is_late(pace, now) or not ahead:
        ahead.append(now + _LOOK_AGAIN_S)
    return min(ahead)


def _deadlines(pace: Pace) -> Iterator[float]:
    """Yield when something is said or done of the worker if it sends nothing more."""
    limits = _limits(pace)
    yield pace.advanced_at + limits.late
    yield pace.advanced_at + limits.hung
    yield pace.alive_at + limits.silent
    if pace.told_to_leave_at is not None:
        yield pace.told_to_leave_at + _STUCK_AFTER_S
        yield pace.told_to_leave_at + limits.obstinate

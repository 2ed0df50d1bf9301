"""How a group takes a run up again: what each process remembers of the training before, and what
the change of group cost.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelscaling.protocol import Resumption

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from modelscaling.protocol import StateSource
    from modelscaling_trainer.group import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The last training that a process took part in."""

    generation: int
    attempt: int
    step: int
    """Steps that it has seen done."""
    loss: float
    """Of the last of them, nats a token."""


class History:
    """What one process remembers, over any number of groups."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Take a clock in seconds that is never set."""
        self._clock = clock
        self._stopped_at = 0.0
        self.trained: Trained | None = None
        """None where no step was done. A group that breaks before its first step leaves what was
        before it: that is still what the next one takes up."""

    def add_step(self, group: Group, *, step: int, loss: float) -> None:
        """Remember a step that was just done."""
        self.trained = Trained(
            generation=group.generation,
            attempt=group.attempt,
            step=step,
            loss=loss,
        )
        self._stopped_at = self._clock()

    def stop(self, group: Group) -> None:
        """Remember that a group broke now, unless it did no step."""
        if self.trained and _number(self.trained) == (group.generation, group.attempt):
            self._stopped_at = self._clock()

    @property
    def idle_seconds(self) -> float:
        """For how long nothing was trained here; without meaning where nothing ever was."""
        return self._clock() - self._stopped_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a group goes on with; see `Resumption` for the fields."""

    source: StateSource
    step: int
    furthest_step: int
    stopped_time: float | None
    loss_before: float | None

    def resumption(self, group: Group, *, resumed_time: float, loss_after: float) -> Resumption:
        """Return what is told of it from the group's first step on: when that began, in seconds
        since 1970, and its loss, in nats a token.
        """
        return Resumption(
            generation=group.generation,
            attempt=group.attempt,
            source=self.source,
            step=self.step,
            furthest_step=self.furthest_step,
            stopped_time=self.stopped_time,
            resumed_time=resumed_time,
            loss_before=self.loss_before,
            loss_after=loss_after,
        )


def trace(
    source: StateSource,
    step: int,
    trained: Sequence[Trained | None],
    *,
    idle_seconds: Sequence[float],
    now: float,
) -> Origin:
    """Return what a group goes on with, which has so many steps, by what its ranks remember, each
    with how long ago it stopped. Where none remembers anything, nobody here knows whether the run
    begins, or has lost all that it had: the operator does.

    Those count that were in the newest group that did a step: others, such as a pod that was cut
    off for a while, stopped at another time. Of them the one that stopped first says when: a step
    needs all, so nothing was done from then on. Times are differences on each rank's own clock,
    before one `now` (seconds since 1970), as the clocks of nodes differ and are set.
    """
    newest = max(map(_number, filter(None, trained)), default=None)
    last = [
        (memory, idle)
        for memory, idle in zip(trained, idle_seconds, strict=True)
        if memory is not None and _number(memory) == newest
    ]
    if not last:
        return _unremembered(source, step)
    furthest = max((memory for memory, _ in last), key=lambda memory: memory.step)
    return Origin(
        source=source,
        step=step,
        furthest_step=max(furthest.step, step),
        stopped_time=now - max(idle for _, idle in last),
        loss_before=furthest.loss,
    )


def _unremembered(source: StateSource, step: int) -> Origin:
    """Return what processes that remember nothing go on with."""
    return Origin(
        source=source,
        step=step,
        furthest_step=step,
        stopped_time=None,
        loss_before=None,
    )


def _number(trained: Trained) -> tuple[int, int]:
    return trained.generation, trained.attempt

"""What the processes of a script write of their steps, and what it says of the time between two
groups.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from bench.outage import Outage

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMoment:
    """The beginning or the end of a step in one process."""

    pid: int
    rank: int
    world: int
    """Processes in its group."""
    step: int
    """Counted from 1."""
    has_ended: bool
    time: float
    """Seconds since 1970."""

    def line(self) -> str:
        """Return it as a line of JSON, with its end: what is written at once stays whole."""
        return json.dumps(asdict(self)) + "\n"


def parse(text: str) -> list[StepMoment]:
    """Return what was written."""
    return [StepMoment(**json.loads(line)) for line in text.splitlines()]


def first_step_since(
    moments: Sequence[StepMoment], since: float, *, world: int
) -> StepMoment | None:
    """Return the first beginning of a step in a group of `world` processes that formed after
    `since`, which no process of a group before can be in: a script is started anew for each group.
    """
    before = {moment.pid for moment in moments if moment.time <= since}
    return next(
        (
            moment
            for moment in moments
            if moment.pid not in before and moment.world == world and moment.rank == 0
        ),
        None,
    )


def furthest_step(moments: Sequence[StepMoment]) -> int:
    """Return how many steps were done."""
    return max((moment.step for moment in moments if moment.has_ended), default=0)


def outage(
    moments: Sequence[StepMoment], resumed: StepMoment, *, failed_time: float | None = None
) -> Outage:
    """Return what the time before `resumed` cost: since the failure, or since the last step that
    ended before.
    """
    ended = [m for m in moments if m.has_ended and m.time <= resumed.time]
    stopped_time = max((m.time for m in ended), default=resumed.time)
    return Outage(
        seconds=resumed.time - (stopped_time if failed_time is None else failed_time),
        steps_again=max(furthest_step(ended) - (resumed.step - 1), 0),
    )

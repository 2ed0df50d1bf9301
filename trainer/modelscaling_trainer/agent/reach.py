"""Which pods an agent cannot reach while its group does not come on: pure rules over what came of
asking them, and the time.

Agents hear the first member's alone, and a network may be cut between two others: then neither
falls silent, and their workers wait for each other until the collective's timeout.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelscaling_trainer.agent.worker_facts import FORMING_PHASES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modelscaling.protocol import Member
    from modelscaling_trainer.agent.facts import Facts
    from modelscaling_trainer.agent.lateness import Pace

_HELD_UP_AFTER_S = 2.0
"""How long a worker waits for its peers, or for the group to form, before they are asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """The pods that have not answered. Times are the event loop's, in seconds."""

    silent_since: Mapping[Member, float] = field(default_factory=dict)
    """When each was first asked of those questions in a row that it did not answer."""

    def after(self, answers: Mapping[Member, bool], *, asked_at: float) -> Reach:
        """Return what is known after these pods were asked; others do not matter any more."""
        silent = [pod for pod, has_answered in answers.items() if not has_answered]
        return Reach(silent_since={pod: self.silent_since.get(pod, asked_at) for pod in silent})

    def unreachable(self, *, now: float, limit_s: float) -> frozenset[int]:
        """Return the indexes of the pods that have not answered for so long."""
        return frozenset(
            pod.index for pod, since in self.silent_since.items() if now >= since + limit_s
        )


def is_held_up(facts: Facts, paces: Sequence[Pace], *, now: float) -> bool:
    """Whether an agent's group does not come on, as if one of its pods could not be reached; the
    paces are those of the agent's workers.
    """
    if not facts.is_in_group():
        return False
    # A worker does not know that it waits where that is done by a GPU's stream; but it is late.
    return bool(facts.lost or facts.late) or any(_waits(pace, now) for pace in paces)


def _waits(pace: Pace, now: float) -> bool:
    if pace.group is None or now < pace.advanced_at + _HELD_UP_AFTER_S:
        return False
    return pace.is_waiting or pace.phase in FORMING_PHASES

"""Which of the agents that an agent has to hear have fallen silent: pure rules over what is known
of their connections, and the time.

The first member's agent hears all others of its group; each of them hears that one.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelscaling_trainer.agent.placement import Placement

CONNECTED_WITHIN_S = 3.0
"""From the time an agent has heard of its group until those that it never heard are lost. They
are told of the group at about the same time, and try again every few tenths of a second."""


class Contact(StrEnum):
    """What has become of the connection to an agent that was heard at least once."""

    CONNECTED = "Connected"
    PARTED = "Parted"
    """Its agent took leave: it has a newer group, or its work is done."""
    BROKEN = "Broken"
    """It was closed without a word, or nothing came through it any more."""


def expected_pods(placement: Placement, *, has_handed_over: bool) -> frozenset[int]:
    """Return the indexes of the pods that an agent has to hear in a group.

    Those that leave are not needed any more once the group has all that they held.
    """
    first, *others = placement.assignment.members if has_handed_over else placement.pods
    if placement.is_leader:
        return frozenset(pod.index for pod in others)
    return frozenset({first.index})


def lost_pods(
    expected: frozenset[int], contacts: Mapping[int, Contact], *, since: float, now: float
) -> frozenset[int]:
    """Return which of the expected pods have fallen silent; `since` is when they could first be
    heard.
    """
    is_overdue = now >= since + CONNECTED_WITHIN_S
    silent = {Contact.BROKEN, None} if is_overdue else {Contact.BROKEN}
    return frozenset(index for index in expected if contacts.get(index) in silent)

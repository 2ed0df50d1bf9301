"""Who is what among the run's own pods: members of the wished group, spares, or too many.

An index is only a name. A place is given to a pod, not to an index: the place of one that is lost
or told to end is taken at once by a pod of another index, whoever still has the old one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from itertools import count, islice
from typing import TYPE_CHECKING

from modelscaling.protocol import AgentState
from modelscaling_operator.bystanders import bystanders, next_try_time
from modelscaling_operator.failure import is_failed, retry_time
from modelscaling_operator.observation import PodPhase
from modelscaling_operator.presence import Presence

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from modelscaling_operator.observation import Observation, Pod
    from modelscaling_operator.wish import Wish

FINISH_MARGIN_S = 10
"""Seconds after a member's good end in which the end of the first rank is awaited; after them the
pod counts as one that was released and is wanted again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """The run's own pods that can be counted on, by what they are for."""

    wished: tuple[Pod, ...]
    """Those that are to be the group: at most spec.replicas."""
    spares: tuple[Pod, ...]
    """Those that wait beside it, at most spec.elastic.spares."""
    resting: tuple[Pod, ...]
    """Those that failed beside a group that goes on, each in the place of the next to be tried."""
    surplus: tuple[Pod, ...]
    """Those that nobody wants."""
    able: tuple[Pod, ...]
    """Those that can follow into the next group, in the order in which they are taken."""
    outdated: tuple[Pod, ...]
    """Those of the present group's own template, where the spec has another one by now, that could
    form the next group in their stead: members first, then spares."""
    create: tuple[int, ...]
    """Indexes of the pods that are missing: the lowest that no pod has."""


def assign_roles(
    wish: Wish, seen: Observation, present: Mapping[str, Presence], now: datetime
) -> Roles:
    """Return who is what.

    Members of the present group are taken first, then pods that are warm, then those that run,
    and among equals the lowest index. So a run that shrinks gives up pods outside the group before
    members, and of these the highest indexes.
    """
    group = frozenset(seen.status.group.pods if seen.status.group else ())

    def order(pod: Pod) -> tuple[bool, bool, bool, int]:
        is_able = present[pod.uid] is Presence.ABLE
        return (pod.uid not in group, not is_able, not pod.live, pod.index)

    awaited = {Presence.ABLE, Presence.STARTING}
    counted = sorted((pod for pod in seen.own if present[pod.uid] in awaited), key=order)
    pods = [pod for pod in counted if pod.revision == wish.revision]
    others = [pod for pod in counted if pod.revision != wish.revision]
    replicas, spares = wish.spec.replicas, wish.spec.elastic.spares
    beside = bystanders(seen)
    failed = {pod.uid: pod for pod in seen.own if pod.uid in beside and is_failed(pod)}
    held = sum(
        _holds_place(pod, seen, present, now, is_beside=pod.uid in beside)
        for pod in seen.own
        if pod.revision == wish.revision and pod.uid not in failed
    )
    missing = max(0, replicas + spares - len(pods) - held)
    alike = (pod for pod in failed.values() if pod.revision == wish.revision)
    resting = tuple(pod for pod in alike if now < next_try_time(pod))[:missing]
    kept = frozenset(pod.uid for pod in (*resting, *_old_spares(others, seen)[:spares]))
    return Roles(
        wished=tuple(pods[:replicas]),
        spares=tuple(pods[replicas : replicas + spares]),
        resting=resting,
        surplus=(
            *pods[replicas + spares :],
            *(pod for pod in (*others, *failed.values()) if pod.uid not in kept),
        ),
        able=tuple(pod for pod in pods if present[pod.uid] is Presence.ABLE),
        outdated=tuple(
            pod for pod in _alike(others, seen, wish) if present[pod.uid] is Presence.ABLE
        ),
        create=_lowest_free(seen, missing - len(resting)),
    )


def _old_spares(others: list[Pod], seen: Observation) -> list[Pod]:
    """Return the pods beside the group that could take the place of one that it loses, until the
    last of its template has handed over.
    """
    revisions = {pod.revision for pod in (*seen.members, *seen.leavers) if pod}
    outside = frozenset(pod.uid for pod in seen.outsiders)
    return [pod for pod in others if pod.uid in outside and pod.revision in revisions]


def _alike(others: list[Pod], seen: Observation, wish: Wish) -> list[Pod]:
    """Return the pods of the present group's own template that the wished plans fit."""
    revisions = {pod.revision for pod in seen.members if pod}
    processes = wish.spec.processes_per_replica
    return [pod for pod in others if pod.revision in revisions and pod.processes == processes]


def is_finishing(pod: Pod, seen: Observation, now: datetime) -> bool:
    """Whether a member of the group ended well just now: then so will the others."""
    group = seen.status.group
    if pod.phase is not PodPhase.SUCCEEDED or group is None or pod.uid not in group.pods:
        return False
    finished = pod.exit.finished if pod.exit else None
    return finished is not None and now <= finished + timedelta(seconds=FINISH_MARGIN_S)


def _holds_place(
    pod: Pod, seen: Observation, present: Mapping[str, Presence], now: datetime, *, is_beside: bool
) -> bool:
    """Whether a pod that is over must be heard out before another one takes its place: the next
    may come only after a pause, or not at all.
    """
    if pod.deletion_deadline is not None:
        return False
    if is_failed(pod):
        wait = retry_time(seen.status.restarts)
        return wait is not None and now < wait
    if present[pod.uid] is Presence.GOING:
        agent = seen.agent(pod)
        # One beside the group is told nothing: it ends by its own fault.
        return agent is None or agent.state is AgentState.ENDED or is_beside
    return is_finishing(pod, seen, now)


def _lowest_free(seen: Observation, number: int) -> tuple[int, ...]:
    taken = {pod.index for pod in seen.pods}
    return tuple(islice((index for index in count() if index not in taken), number))

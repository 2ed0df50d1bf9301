"""Which pods are to be created and deleted while a run trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelscaling.protocol import StopMode
from modelscaling_operator.action import NOTHING_TO_SAVE_S, CreatePods, DeletePod, LabelPod
from modelscaling_operator.bystanders import bystanders, goes_on
from modelscaling_operator.failure import is_failed, retry_time
from modelscaling_operator.observation import PodPhase
from modelscaling_operator.presence import GIVEN_UP, Presence
from modelscaling_operator.roles import is_finishing
from modelscaling_operator.winding import stuck, wind_down

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from modelscaling.api.group_status import GroupStatus
    from modelscaling_operator.action import Action
    from modelscaling_operator.observation import Observation, Pod
    from modelscaling_operator.roles import Roles


def missing_pods(
    seen: Observation,
    roles: Roles,
    present: Mapping[str, Presence],
    image: str,
    now: datetime,
) -> CreatePods | None:
    """Return the pods that are to be created at once."""
    refused = seen.refusal is not None and now < seen.refusal.retry_time
    if not roles.create or refused:
        return None
    lost = {pod.node for pod in seen.own if present[pod.uid] in GIVEN_UP and pod.node}
    source = seen.status.init_from
    return CreatePods(
        indexes=roles.create,
        image=image,
        avoid_nodes=tuple(sorted(lost)),
        source_uid=source.uid if source else None,
    )


def spent_pods(
    seen: Observation, present: Mapping[str, Presence], now: datetime
) -> Iterator[DeletePod]:
    """Yield the pods that are over, and those that are given up."""
    wait = retry_time(seen.status.restarts)
    beside = bystanders(seen)
    for pod in seen.own:
        if present[pod.uid] in GIVEN_UP:
            yield DeletePod(pod=pod, grace_s=0)
        elif pod.deletion_deadline is not None:
            if stuck(pod, now):
                yield DeletePod(pod=pod, grace_s=0)
        elif is_failed(pod):
            # Of those beside the group the roles say which are to go.
            if pod.uid not in beside and (wait is None or now >= wait):
                yield DeletePod(pod=pod)
        elif pod.phase is PodPhase.FAILED or _is_spent(pod, seen, now):
            yield DeletePod(pod=pod)


def leaving_pods(
    seen: Observation, roles: Roles, present: Mapping[str, Presence], now: datetime
) -> Iterator[Action]:
    """Yield what lets pods go that nobody wants. Those that may hold a part of the state hand it
    over first, and end by themselves; they are helped along only once the group trains without
    them.
    """
    group = seen.status.group
    inside = frozenset((*group.pods, *group.leaving) if group else ())
    unwanted = [pod for pod in roles.surplus if pod.uid not in inside]
    yield from (DeletePod(pod=pod, grace_s=NOTHING_TO_SAVE_S) for pod in unwanted)
    if group is None or not group.trained:
        return
    left = [pod for pod in seen.leavers if pod and not pod.ended]
    left = [pod for pod in left if present[pod.uid] not in GIVEN_UP]
    yield from wind_down(
        seen, left, mode=StopMode.RELEASE, keep_ended=False, since=group.decided_time, now=now
    )


def relabelled_pods(seen: Observation, roles: Roles) -> Iterator[LabelPod]:
    """Yield the pods whose label does not say yet, or not any more, that they are idle: spares, and
    while a group trains those that wait to join it. One that starts may still take another's place,
    and an autoscaler does not count it before it is ready.
    """
    busy = [pod for pod in seen.members if pod] if goes_on(seen.status.group) else roles.wished
    for pod in busy:
        if pod.is_spare:
            yield LabelPod(pod=pod, is_spare=False)
    idle = frozenset(pod.uid for pod in roles.able) - frozenset(pod.uid for pod in busy)
    for pod in (*roles.wished, *roles.spares):
        if pod.uid in idle and not pod.is_spare:
            yield LabelPod(pod=pod, is_spare=True)


def _is_spent(pod: Pod, seen: Observation, now: datetime) -> bool:
    """Whether a pod that ended well is of no more use: as one of an untrained group it still says
    that it has handed its state over.
    """
    if pod.phase is not PodPhase.SUCCEEDED or is_finishing(pod, seen, now):
        return False
    return not _is_just_released(pod, seen.status.group)


def _is_just_released(pod: Pod, group: GroupStatus | None) -> bool:
    return group is not None and not group.trained and pod.uid in group.leaving

"""Which pods are to be created and deleted while a run trains."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from modelscaling.api.conditions import Reason
from modelscaling.protocol import AgentState, StopMode
from modelscaling_operator.action import CreatePods, DeletePod
from modelscaling_operator.failure import is_failed, retry_time
from modelscaling_operator.observation import Obstacle, PodPhase, Silence
from modelscaling_operator.winding import stuck, wind_down

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from modelscaling.api.status import RestartStatus
    from modelscaling_operator.action import Action
    from modelscaling_operator.group import Formation
    from modelscaling_operator.observation import Observation, Pod
    from modelscaling_operator.wish import Wish

FINISH_MARGIN_S = 10
"""Seconds after a pod's good end in which the end of the first rank is awaited; after them the
pod counts as one that was released and is wanted again."""
SILENCE_LIMIT_S = 30
"""Seconds without an answer after which a pod is given up, if its own group says that it broke."""


def missing_pods(wish: Wish, seen: Observation, image: str, now: datetime) -> CreatePods | None:
    """Return the pods that are to be created at once."""
    refused = seen.refusal is not None and now < seen.refusal.retry_time
    taken = {pod.index for pod in seen.pods}
    indexes = tuple(index for index in range(wish.spec.replicas) if index not in taken)
    return CreatePods(indexes=indexes, image=image) if indexes and not refused else None


def foreign_pod(wish: Wish, seen: Observation) -> Obstacle | None:
    """Return the obstacle of a pod that has the name of one of the run's own and is not."""
    for pod in seen.pods:
        foreign = pod.owner_uid != seen.run.uid and pod.index < wish.spec.replicas
        if foreign and pod.deletion_deadline is None:
            return Obstacle(
                reason=Reason.NAME_TAKEN,
                message=f"pod {pod.name} exists and does not belong to this run; delete it",
            )
    return None


def spent_pods(
    wish: Wish, seen: Observation, restarts: RestartStatus, now: datetime
) -> Iterator[DeletePod]:
    """Yield the pods whose place another one must take."""
    wait = retry_time(restarts)
    for pod in seen.own:
        if pod.index >= wish.spec.replicas:
            continue
        if pod.deletion_deadline is not None:
            if stuck(pod, now):
                yield DeletePod(pod=pod, force=True)
        elif is_failed(pod):
            if wait is None or now >= wait:
                yield DeletePod(pod=pod)
        elif pod.phase is PodPhase.FAILED or _ended_long_ago(pod, now) or _is_lost(pod, seen, now):
            yield DeletePod(pod=pod)


def leaving_pods(
    wish: Wish, seen: Observation, formation: Formation, now: datetime
) -> Iterator[Action]:
    """Yield what lets pods beyond the replicas go: once the group has formed without them, or
    if they never were in one.
    """
    group = formation.group
    leavers = [pod for pod in seen.own if pod.index >= wish.spec.replicas]
    if group is None or formation.settled:
        since = group.decided_time if group else now
        yield from wind_down(
            seen, leavers, mode=StopMode.RELEASE, keep_ended=False, since=since, now=now
        )
        return
    for pod in leavers:
        agent = seen.agent(pod)
        never_joined = agent is not None and agent.generation == 0
        if stuck(pod, now):
            yield DeletePod(pod=pod, force=True)
        elif pod.deletion_deadline is None and (never_joined or not pod.live):
            yield DeletePod(pod=pod)


def outdated_pods(wish: Wish, seen: Observation) -> tuple[Pod, ...]:
    """Return the pods that were made from another template."""
    return tuple(
        pod for pod in seen.own if pod.index < wish.spec.replicas and pod.revision != wish.revision
    )


def _ended_long_ago(pod: Pod, now: datetime) -> bool:
    if pod.phase is not PodPhase.SUCCEEDED:
        return False
    finished = pod.exit.finished if pod.exit else None
    return finished is None or now > finished + timedelta(seconds=FINISH_MARGIN_S)


def _is_lost(pod: Pod, seen: Observation, now: datetime) -> bool:
    """Whether a pod is silent while others of its group say that the group broke.

    Their word is needed: were the operator itself cut off from the pods, it would else delete
    every pod of every run.
    """
    answer = seen.agents.get(pod.uid)
    group = seen.status.group
    if not pod.live or group is None or not isinstance(answer, Silence):
        return False
    if now < answer.since + timedelta(seconds=SILENCE_LIMIT_S):
        return False
    others = (seen.agent(other) for other in seen.own if other.uid != pod.uid)
    return any(
        agent is not None
        and agent.generation == group.generation
        and agent.state is AgentState.WARM
        and agent.failure is not None
        for agent in others
    )

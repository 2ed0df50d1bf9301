"""Ending pods in order: save first where there is something to save."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from modelscaling.protocol import AgentState, StopMode
from modelscaling_operator.action import DeletePod, Stop
from modelscaling_operator.breakage import is_awaited

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from modelscaling_operator.action import Action
    from modelscaling_operator.observation import Observation, Pod

STUCK_MARGIN_S = 10
"""Seconds after a pod's deadline of deletion at which its kubelet is given up."""
STOP_TIMEOUT_S = 300
"""Seconds that agents have to reach a step boundary and save, once they are told to."""

_ENDING = frozenset({AgentState.STOPPING, AgentState.ENDED})


def stuck(pod: Pod, now: datetime) -> bool:
    """Whether a pod's deletion is overdue: nobody is left on its node to end it."""
    deadline = pod.deletion_deadline
    return deadline is not None and now > deadline + timedelta(seconds=STUCK_MARGIN_S)


def wind_down(
    seen: Observation,
    pods: Iterable[Pod],
    *,
    mode: StopMode,
    keep_ended: bool,
    since: datetime,
    now: datetime,
) -> Iterator[Action]:
    """Yield what ends `pods`: agents save and exit, then pods are deleted unless they are kept
    for their logs. What does not end within STOP_TIMEOUT_S after `since` is deleted too.
    """
    generation = seen.status.group.generation if seen.status.group else 0
    overdue = now > since + timedelta(seconds=STOP_TIMEOUT_S)
    for pod in pods:
        agent = seen.agent(pod)
        if pod.deletion_deadline is not None:
            if stuck(pod, now):
                yield DeletePod(pod=pod, grace_s=0)
        elif pod.ended:
            if not keep_ended:
                yield DeletePod(pod=pod)
        elif overdue or not pod.live:
            yield DeletePod(pod=pod)
        elif agent is None:
            # One that does not answer any more has perhaps just ended, and its report is still to
            # come, or its log to be kept.
            if not keep_ended and not is_awaited(pod, seen, now):
                yield DeletePod(pod=pod)
        elif agent.state not in _ENDING:
            yield Stop(pod=pod, mode=mode, generation=max(generation, agent.generation))

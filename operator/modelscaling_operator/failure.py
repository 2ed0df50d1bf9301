"""How pods end: what is fatal, what is a failure, what is only a loss; and the pause after it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from modelscaling.api.status import MESSAGE_MAX_LENGTH, RestartStatus
from modelscaling.exit_code import FATAL, ExitCode
from modelscaling.protocol import AgentState
from modelscaling_operator.observation import PodPhase

if TYPE_CHECKING:
    from datetime import datetime

    from modelscaling.protocol import Failure
    from modelscaling_operator.observation import Observation, Pod

LONGEST_PAUSE_S = 60
_REASON_OF_EXIT = {
    ExitCode.CONFIGURATION: "InvalidConfiguration",
    ExitCode.DIVERGED: "Diverged",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Why a run is over."""

    reason: str
    message: str


def fatal_failure(seen: Observation) -> Verdict | None:
    """Return why no retry can help, if an agent said so."""
    for pod in seen.own:
        if pod.exit is not None and pod.exit.code in FATAL:
            failure = pod.exit.report.failure if pod.exit.report else None
            reason = failure.reason if failure else _REASON_OF_EXIT[ExitCode(pod.exit.code)]
            return Verdict(reason=reason, message=describe_exit(pod))
        agent = seen.agent(pod)
        if agent is not None and agent.failure is not None and agent.failure.exit_code in FATAL:
            return Verdict(reason=agent.failure.reason, message=_sentence(pod.name, agent.failure))
    return None


def is_failed(pod: Pod) -> bool:
    """Whether a pod ended by its own fault, in a way that a retry may mend."""
    return (
        pod.phase is PodPhase.FAILED
        and pod.disruption is None
        and pod.deletion_deadline is None
        and (pod.exit is None or pod.exit.code != ExitCode.INTERRUPTED)
    )


def describe_exit(pod: Pod) -> str:
    """Return in a sentence how a pod ended."""
    if pod.disruption is not None:
        return f"pod {pod.name} was taken away: {pod.disruption}"
    if pod.exit is None:
        return f"pod {pod.name} failed"
    if pod.exit.report is not None and pod.exit.report.failure is not None:
        return _sentence(pod.name, pod.exit.report.failure)
    if pod.exit.reason == "OOMKilled":
        return (
            f"pod {pod.name} used more memory than its limit and was killed (exit code "
            f"{pod.exit.code}); raise resources.limits.memory in spec.template, or lower "
            f"training.microBatchSize"
        )
    detail = f": {pod.exit.text.strip()}" if pod.exit.text.strip() else ""
    if pod.exit.code < 0:
        return f"pod {pod.name} was refused by its node ({pod.exit.reason}){detail}"
    return f"pod {pod.name} ended with exit code {pod.exit.code} ({pod.exit.reason}){detail}"


def count_failures(seen: Observation, now: datetime, *, step: int) -> RestartStatus:
    """Return the failures so far, with each new one counted once.

    A failure is known by its pod's UID, or by its group's number where the pods live on. Both stay
    in `counted` as long as they can be seen.
    """
    before = seen.status.restarts
    restarts = before
    if restarts.consecutive and step > restarts.step:
        restarts = restarts.model_copy(update={"consecutive": 0})
    visible = {pod.uid: describe_exit(pod) for pod in seen.own if is_failed(pod)}
    broken = broken_group(seen)
    if broken is not None and seen.status.group is not None:
        visible[f"generation:{seen.status.group.generation}"] = broken
    fresh = [key for key in visible if key not in before.counted]
    kept = tuple(key for key in before.counted if key in visible) + tuple(fresh)
    restarts = restarts.model_copy(update={"counted": kept})
    if not fresh:
        return restarts
    return restarts.model_copy(
        update={
            "count": restarts.count + len(fresh),
            "consecutive": restarts.consecutive + 1,
            "step": max(step, restarts.step),
            "last_time": now,
            "message": visible[fresh[0]][:MESSAGE_MAX_LENGTH],
        }
    )


def broken_group(seen: Observation) -> str | None:
    """Return why the present group broke, if all its pods live and wait for another one."""
    group = seen.status.group
    if group is None:
        return None
    agents = [(pod, seen.agent(pod)) for pod in seen.own if pod.live]
    members = [(pod, a) for pod, a in agents if a is not None and a.generation == group.generation]
    if len(members) < group.members or any(a.state is not AgentState.WARM for _, a in members):
        return None
    return next(
        (_sentence(pod.name, agent.failure) for pod, agent in members if agent.failure), None
    )


def retry_time(restarts: RestartStatus) -> datetime | None:
    """Return when the next attempt may begin; None where there is nothing to wait for."""
    if restarts.last_time is None or restarts.consecutive == 0:
        return None
    pause_s = min(LONGEST_PAUSE_S, 2.0 ** min(restarts.consecutive - 1, 10))
    return restarts.last_time + timedelta(seconds=pause_s)


def _sentence(pod_name: str, failure: Failure) -> str:
    rank = f" (rank {failure.rank})" if failure.rank is not None else ""
    return f"pod {pod_name}{rank}: {failure.reason}: {failure.message}"

"""How pods end: what is fatal, what is a failure, what is only a loss; and the pause after it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from modelscaling.api.status_base import MESSAGE_MAX_LENGTH
from modelscaling.exit_code import FATAL, ExitCode
from modelscaling.protocol import AgentState
from modelscaling_operator.bystanders import bystanders
from modelscaling_operator.observation import PodPhase
from modelscaling_operator.severance import severed_pods

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from modelscaling.api.group_status import RestartStatus
    from modelscaling.protocol import Failure
    from modelscaling_operator.observation import Observation, Pod

LONGEST_PAUSE_S = 60
MOST_AT_ONE_STEP = 6
"""Failed attempts without a step in between after which the run is given up."""
COUNTED_KEPT = 4096
_LOST = "GroupLost"
"""The reason of a failure that follows from another member's."""
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
    """Return why no retry can help, if an agent said so, other than one beside a group that went
    on without it.
    """
    passed_over = bystanders(seen) | frozenset(seen.status.restarts.counted)
    verdicts = (_verdict(pod, seen) for pod in seen.own if pod.uid not in passed_over)
    return next((verdict for verdict in verdicts if verdict is not None), None)


def _verdict(pod: Pod, seen: Observation) -> Verdict | None:
    """Return why a pod cannot be helped by another try, if its agent said so."""
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

    A failure is known by its pod's UID, by that and a number for the pod's workers, or by its
    group's number where the pods live on. All stay in `counted` as long as they can be seen, also
    those of pods beside a group that goes on, which add nothing, be it then or once the group
    breaks. What ends the run, or happens after its end, is none: nothing is restarted.
    """
    restarts = seen.status.restarts
    if seen.status.completion_time is not None or fatal_failure(seen) is not None:
        return restarts
    if restarts.consecutive and step > restarts.step:
        restarts = restarts.model_copy(update={"consecutive": 0})
    known = _parse_counted(restarts.counted)
    visible = dict(_visible_failures(seen, known))
    beside = bystanders(seen)
    fresh = {
        key: failure
        for key, failure in visible.items()
        if failure.number > known.get(key, 0) and key.removesuffix("#") not in beside
    }
    counted = tuple(
        _counted_key(key, max(failure.number, known.get(key, 0)))
        for key, failure in visible.items()
    )
    restarts = restarts.model_copy(update={"counted": counted[-COUNTED_KEPT:]})
    if not fresh:
        return restarts
    generation, attempt = max(failure.attempt for failure in fresh.values())
    is_other = any(_is_of_another_attempt(failure, restarts) for failure in fresh.values())
    message = next(iter(fresh.values())).message
    return restarts.model_copy(
        update={
            "count": restarts.count + sum(f.number - known.get(key, 0) for key, f in fresh.items()),
            "consecutive": restarts.consecutive + int(is_other),
            "generation": generation,
            "attempt": attempt,
            "step": max(step, restarts.step),
            "last_time": now,
            "message": message[:MESSAGE_MAX_LENGTH],
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failures:
    """What has failed under one key."""

    number: int
    message: str
    attempt: tuple[int, int]
    """The group's number and which attempt to form it, as far as they are known."""
    pod_created: datetime | None = None
    """When the pod was created that failed; None where it lives on."""


def _visible_failures(
    seen: Observation, known: Mapping[str, int]
) -> Iterator[tuple[str, _Failures]]:
    newest, severed = _newest_attempt(seen), severed_pods(seen)
    for pod in seen.own:
        if is_failed(pod) or _verdict(pod, seen) is not None:
            yield (
                pod.uid,
                _Failures(
                    number=1, message=describe_exit(pod), attempt=newest, pod_created=pod.created
                ),
            )
        failures = _of_workers(pod, seen, known)
        if failures.number:
            yield f"{pod.uid}#", failures
    for pod in seen.own:
        if pod.uid in severed:
            yield (
                pod.uid,
                _Failures(
                    number=1, message=severed[pod.uid], attempt=newest, pod_created=pod.created
                ),
            )
    broken = broken_group(seen)
    if broken is not None and seen.status.group is not None:
        key = f"generation:{seen.status.group.generation}"
        yield key, _Failures(number=1, message=broken, attempt=newest)


def _of_workers(pod: Pod, seen: Observation, known: Mapping[str, int]) -> _Failures:
    """Return the failures of a pod's workers; those that are counted, while it is silent."""
    agent = seen.agent(pod)
    message = f"pod {pod.name}: a worker died and was replaced"
    if agent is None:
        return _Failures(number=known.get(f"{pod.uid}#", 0), message=message, attempt=(0, 0))
    return _Failures(
        number=agent.worker_failures,
        message=_sentence(pod.name, agent.failure) if agent.failure else message,
        attempt=(agent.generation, agent.attempt),
    )


def _parse_counted(counted: tuple[str, ...]) -> dict[str, int]:
    """Return how many failures of each key are counted."""
    words = (word.partition("#") for word in counted)
    return {f"{key}{mark}": int(number or 1) for key, mark, number in words}


def _counted_key(key: str, number: int) -> str:
    return f"{key}{number}" if key.endswith("#") else key


def _newest_attempt(seen: Observation) -> tuple[int, int]:
    agents = (seen.agent(pod) for pod in seen.own)
    known = ((agent.generation, agent.attempt) for agent in agents if agent)
    return max(known, default=(0, 0))


def _is_of_another_attempt(failure: _Failures, restarts: RestartStatus) -> bool:
    """Whether the run had another chance since the failure that was counted last: several workers
    or pods that die of one cause are one failed attempt, whenever each is seen.
    """
    if restarts.consecutive == 0 or restarts.last_time is None:
        return True
    # The API server counts a pod's creation in whole seconds.
    last = restarts.last_time.replace(microsecond=0)
    if failure.pod_created is not None and failure.pod_created >= last:
        return True
    return failure.attempt > (restarts.generation, restarts.attempt)


def broken_group(seen: Observation) -> str | None:
    """Return why the present group broke, if all its pods live and one has given it up."""
    group = seen.status.group
    if group is None:
        return None
    pods = [pod for pod in seen.members if pod and pod.live]
    if not pods or len(pods) < group.members:
        return None
    for pod in pods:
        agent = seen.agent(pod)
        given_up = agent is not None and agent.state is AgentState.WARM and agent.failure
        if agent is not None and given_up and agent.generation == group.generation:
            return _sentence(pod.name, given_up)
    return None


def failure_while_forming(seen: Observation) -> str | None:
    """Return why the present group meets again, if a member has said so: what happened to itself
    before that it has lost the others.
    """
    group = seen.status.group
    members = [(pod, seen.agent(pod)) for pod in seen.members if pod]
    said = [
        (pod.name, agent.failure)
        for pod, agent in members
        if group is not None
        and agent is not None
        and agent.state is AgentState.FORMING
        and agent.generation == group.generation
        and agent.failure is not None
    ]
    own = next((told for told in said if told[1].reason != _LOST), None)
    told = own or next(iter(said), None)
    return _sentence(*told) if told else None


def retry_time(restarts: RestartStatus) -> datetime | None:
    """Return when the next attempt may begin; None where there is nothing to wait for: nothing
    failed, or for the first time since a step was done.
    """
    if restarts.last_time is None or restarts.consecutive <= 1:
        return None
    pause_s = min(LONGEST_PAUSE_S, 2.0 ** min(restarts.consecutive - 2, 10))
    return restarts.last_time + timedelta(seconds=pause_s)


def _sentence(pod_name: str, failure: Failure) -> str:
    rank = f" (rank {failure.rank})" if failure.rank is not None else ""
    return f"pod {pod_name}{rank}: {failure.reason}: {failure.message}"

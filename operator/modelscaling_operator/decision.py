"""The decision: from what is wished, what is seen and the time, to what is done and said.

Pure, and made anew each time. The status is written before the actions are carried out, so what
must not be forgotten (the group's number, the failures counted) is safe when the operator dies in
between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.status import ModelScalingStatus, ModelStatus, PlanStatus
from modelscaling.protocol import AgentState, StopMode
from modelscaling.quantity import format_quantity
from modelscaling_operator.action import Action, DeleteRun
from modelscaling_operator.condition_set import ConditionSet, derive_state
from modelscaling_operator.failure import Verdict, count_failures, fatal_failure, retry_time
from modelscaling_operator.group import form_group
from modelscaling_operator.placement import (
    foreign_pod,
    leaving_pods,
    missing_pods,
    outdated_pods,
    spent_pods,
)
from modelscaling_operator.pod import template_image
from modelscaling_operator.progress import newest_progress, progress_status, record_training
from modelscaling_operator.running import describe_running, group_trains
from modelscaling_operator.winding import wind_down
from modelscaling_operator.wish import Rejection, Wish

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelscaling.api.modelscaling import ModelScalingSpec
    from modelscaling_operator.observation import Observation, Pod

IDLE_S = 300.0
"""Seconds after which a run is looked at again although nothing happened."""
EVENTS_S = 5.0
"""The same, while pods are awaited that the API server will tell of."""
LAST_RANKS_S = 60
"""Seconds that the other pods have to end, once the first rank has done the last step."""

_READY = frozenset({AgentState.WARM, AgentState.FORMING, AgentState.TRAINING})
_NOT_A_RESCALE = frozenset({Reason.STARTED.value, Reason.PODS_CHANGED, Reason.GROUP_BROKE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the operator's settings say about decisions."""

    trainer_image: str
    """Image of pods where the template has none."""
    poll_s: float
    """Seconds between two looks at a group that trains."""
    forming_poll_s: float = 0.25
    """Seconds between two looks at pods that start and a group that forms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is to be said, then done, and when to look again."""

    status: ModelScalingStatus
    actions: tuple[Action, ...] = ()
    requeue_s: float = IDLE_S


def decide(  # noqa: PLR0911 - an ordered list of guards
    wish: Wish | Rejection, seen: Observation, now: datetime, policy: Policy
) -> Decision:
    """Return what to do about a run."""
    draft = _Draft.begin(wish, seen, now)
    if seen.status.completion_time is not None:
        return _after_the_end(draft, wish)
    finisher = _finisher(seen)
    if finisher is not None:
        return _last_ranks(draft, finisher)
    verdict = fatal_failure(seen) or _given_up(wish, draft)
    if verdict is not None:
        return _end(draft, ConditionType.FAILED, verdict)
    if isinstance(wish, Rejection):
        return _rejected(draft, wish, policy)
    draft = draft.condition(
        ConditionType.ACCEPTED, holds=True, reason=Reason.ACCEPTED, message="The spec is valid."
    )
    if wish.spec.suspend or wish.spec.replicas == 0:
        return _suspend(draft, wish)
    draft = draft.condition(
        ConditionType.SUSPENDED,
        holds=False,
        reason=Reason.NOT_SUSPENDED,
        message="The run is to train.",
    )
    outdated = outdated_pods(wish, seen)
    if outdated:
        return _replace_template(draft, outdated)
    return _train(draft, wish, policy)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """The status in the making."""

    seen: Observation
    now: datetime
    status: ModelScalingStatus
    conditions: ConditionSet

    @classmethod
    def begin(cls, wish: Wish | Rejection, seen: Observation, now: datetime) -> _Draft:
        """Return the status with all that is only observed."""
        progress = newest_progress(seen)
        known = seen.status.progress
        step = max(progress.step if progress else 0, known.step if known else 0)
        status = seen.status.model_copy(
            update={
                "observed_generation": seen.generation,
                "selector": seen.run.selector,
                "replicas": sum(
                    not pod.ended and pod.deletion_deadline is None for pod in seen.own
                ),
                "ready_replicas": sum(_is_ready(pod, seen) for pod in seen.own),
                "progress": progress_status(progress, now) if progress else known,
                "restarts": count_failures(seen, now, step=step),
                **(_sizes(wish) if isinstance(wish, Wish) else {}),
            }
        )
        status = record_training(status, seen)
        conditions = ConditionSet(
            conditions=seen.status.conditions, generation=seen.generation, now=now
        )
        return cls(seen=seen, now=now, status=status, conditions=conditions)

    def condition(self, kind: ConditionType, *, holds: bool, reason: str, message: str) -> _Draft:
        """Return the draft with one condition set."""
        changed = self.conditions.set(kind, holds=holds, reason=reason, message=message)
        return replace(self, conditions=changed)

    def update(self, **fields: object) -> _Draft:
        """Return the draft with fields of the status set."""
        return replace(self, status=self.status.model_copy(update=fields))

    def finish(self, actions: Iterable[Action | None] = (), requeue_s: float = IDLE_S) -> Decision:
        """Return the decision."""
        status = self.status.model_copy(
            update={
                "conditions": self.conditions.conditions,
                "state": derive_state(self.conditions),
            }
        )
        return Decision(
            status=status,
            actions=tuple(action for action in actions if action is not None),
            requeue_s=max(requeue_s, 0.01),
        )

    def not_running(self, reason: str, message: str) -> _Draft:
        """Return the draft of a run that does not train, for a reason."""
        return self.condition(
            ConditionType.RUNNING, holds=False, reason=reason, message=message
        ).condition(
            ConditionType.RESCALING,
            holds=False,
            reason=Reason.NOT_RESCALING,
            message="No change of the group is under way.",
        )

    def since(self, kind: ConditionType) -> datetime:
        """Return since when a condition has its value."""
        condition = self.conditions.get(kind)
        return condition.last_transition_time if condition else self.now


def _sizes(wish: Wish) -> dict[str, object]:
    shape = wish.configuration.model
    parameters = shape.parameters()
    return {
        "model": ModelStatus(
            parameters=parameters,
            flops_per_token=shape.flops_per_token(),
            shape=(
                f"{shape.layers} layers × {shape.hidden_size}, {shape.heads} heads of "
                f"{shape.head_size} ({shape.kv_heads} key-value), feed-forward "
                f"{shape.feed_forward_size}, vocabulary {shape.vocabulary_size}, context "
                f"{shape.context_length}"
            ),
            size=format_quantity(parameters),
        ),
        "plan": PlanStatus(mesh=str(wish.plan.mesh), reason=wish.plan.reason),
    }


def _is_ready(pod: Pod, seen: Observation) -> bool:
    agent = seen.agent(pod)
    return pod.live and agent is not None and agent.state in _READY


def _finisher(seen: Observation) -> Pod | None:
    """Return the pod of the rank that has done and reported the last step."""
    for pod in seen.own:
        report = pod.exit.report if pod.exit and pod.exit.code == 0 else None
        progress = report.progress if report else None
        if progress is not None and progress.step >= progress.total_steps:
            return pod
    return None


def _last_ranks(draft: _Draft, finisher: Pod) -> Decision:
    """Wait for the other pods' ends for a while, then call the run complete."""
    finished = (finisher.exit.finished if finisher.exit else None) or draft.now
    waited = draft.now > finished + timedelta(seconds=LAST_RANKS_S)
    if not waited and any(not pod.ended for pod in draft.seen.own):
        return draft.finish(requeue_s=1)
    progress = draft.status.progress
    steps = progress.step if progress else 0
    return _end(
        draft,
        ConditionType.COMPLETE,
        Verdict(reason=Reason.COMPLETE, message=f"All {steps} steps are done."),
    )


def _given_up(wish: Wish | Rejection, draft: _Draft) -> Verdict | None:
    """Return why the spec's own limits end the run."""
    if isinstance(wish, Rejection):
        return None
    restarts = draft.status.restarts
    if restarts.count > wish.spec.max_restarts:
        return Verdict(
            reason=Reason.MAX_RESTARTS_EXCEEDED,
            message=(
                f"{restarts.count} failures are more than spec.maxRestarts="
                f"{wish.spec.max_restarts} allows; the last one: {restarts.message}"
            ),
        )
    deadline = _deadline(wish.spec, draft.status)
    if deadline is not None and draft.now >= deadline:
        return Verdict(
            reason=Reason.DEADLINE_EXCEEDED,
            message=(
                f"The run has taken longer than spec.activeDeadlineSeconds="
                f"{wish.spec.active_deadline_seconds}."
            ),
        )
    return None


def _deadline(spec: ModelScalingSpec, status: ModelScalingStatus) -> datetime | None:
    if spec.active_deadline_seconds is None or status.start_time is None:
        return None
    return status.start_time + timedelta(seconds=spec.active_deadline_seconds)


def _end(draft: _Draft, kind: ConditionType, verdict: Verdict) -> Decision:
    """Call the run complete or failed, for good."""
    word = Reason.COMPLETE if kind is ConditionType.COMPLETE else Reason.FAILED
    draft = (
        draft.update(completion_time=draft.now.replace(microsecond=0))
        .condition(kind, holds=True, reason=verdict.reason, message=verdict.message)
        .not_running(word, verdict.message)
    )
    return draft.finish(_end_pods(draft), requeue_s=1)


def _after_the_end(draft: _Draft, wish: Wish | Rejection) -> Decision:
    """Keep ended pods for their logs until the time to live is over."""
    actions = _end_pods(draft)
    ended = draft.status.completion_time
    assert ended is not None
    requeue_s = EVENTS_S if actions else IDLE_S
    ttl_s = wish.spec.ttl_seconds_after_finished if isinstance(wish, Wish) else None
    if ttl_s is not None:
        left_s = (ended + timedelta(seconds=ttl_s) - draft.now).total_seconds()
        if left_s <= 0:
            return draft.finish([DeleteRun()])
        requeue_s = min(requeue_s, left_s)
    return draft.finish(actions, requeue_s=requeue_s)


def _end_pods(draft: _Draft) -> list[Action]:
    since = draft.status.completion_time or draft.now
    return list(
        wind_down(
            draft.seen,
            draft.seen.own,
            mode=StopMode.SUSPEND,
            keep_ended=True,
            since=since,
            now=draft.now,
        )
    )


def _rejected(draft: _Draft, wish: Rejection, policy: Policy) -> Decision:
    """Start nothing; leave what trains alone."""
    draft = draft.condition(
        ConditionType.ACCEPTED, holds=False, reason=wish.reason, message=wish.message
    )
    if group_trains(draft.seen, draft.now):
        return draft.finish(requeue_s=policy.poll_s)
    draft = draft.not_running(wish.reason, "The spec is not valid; see the condition Accepted.")
    return draft.finish(requeue_s=EVENTS_S if draft.seen.own else IDLE_S)


def _suspend(draft: _Draft, wish: Wish) -> Decision:
    """Save the run and give its pods back."""
    reason = Reason.SUSPENDED if wish.spec.suspend else Reason.SCALED_TO_ZERO
    if not draft.seen.own:
        group = draft.status.group
        if group is not None:
            # Going on later is no rescale: nothing is measured against the group of now.
            fresh = {
                "trained": False,
                "stopped_time": None,
                "stopped_step": None,
                "stopped_mesh": None,
            }
            draft = draft.update(group=group.model_copy(update=fresh))
        draft = draft.not_running(reason, reason.sentence).condition(
            ConditionType.SUSPENDED, holds=True, reason=reason, message=reason.sentence
        )
        return draft.finish()
    draft = draft.not_running(Reason.SUSPENDING, Reason.SUSPENDING.sentence)
    actions = wind_down(
        draft.seen,
        draft.seen.own,
        mode=StopMode.SUSPEND,
        keep_ended=False,
        since=draft.since(ConditionType.RUNNING),
        now=draft.now,
    )
    return draft.finish(actions, requeue_s=1)


def _replace_template(draft: _Draft, outdated: tuple[Pod, ...]) -> Decision:
    """Save and end every pod of another template; those of the new one follow."""
    draft = draft.not_running(Reason.TEMPLATE_CHANGED, Reason.TEMPLATE_CHANGED.sentence)
    actions = wind_down(
        draft.seen,
        outdated,
        mode=StopMode.SUSPEND,
        keep_ended=False,
        since=draft.since(ConditionType.RUNNING),
        now=draft.now,
    )
    return draft.finish(actions, requeue_s=1)


def _train(draft: _Draft, wish: Wish, policy: Policy) -> Decision:
    """Have the wished pods, and the group of them."""
    seen, now = draft.seen, draft.now
    image = template_image(wish.spec) or _present_image(seen) or policy.trainer_image
    if draft.status.start_time is None:
        draft = draft.update(start_time=now.replace(microsecond=0))
    formation = form_group(wish, replace(seen, status=draft.status), draft.status.restarts, now)
    draft = draft.update(group=formation.group, image=image)
    draft = _say_running(draft, wish)
    actions: list[Action | None] = [
        missing_pods(wish, seen, image, now),
        *spent_pods(wish, seen, draft.status.restarts, now),
        formation.assign,
        *leaving_pods(wish, seen, formation, now),
    ]
    return draft.finish(
        actions, requeue_s=_requeue_s(draft, wish, policy, settled=formation.settled)
    )


def _present_image(seen: Observation) -> str:
    """Return the image of the run's present pods: those of a group must be alike, whatever the
    operator's own default is by now.
    """
    return next((pod.image for pod in seen.own if pod.deletion_deadline is None), "")


def _say_running(draft: _Draft, wish: Wish) -> _Draft:
    seen = replace(draft.seen, status=draft.status)
    refusal = seen.refusal
    if refusal is not None and refusal.reason is Reason.INVALID_TEMPLATE:
        draft = draft.condition(
            ConditionType.ACCEPTED, holds=False, reason=refusal.reason, message=refusal.message
        )
    running = describe_running(wish, seen, draft.now, foreign=foreign_pod(wish, seen))
    draft = draft.condition(
        ConditionType.RUNNING, holds=running.holds, reason=running.reason, message=running.message
    )
    group = draft.status.group
    rescaling = (
        group is not None
        and not group.trained
        and group.stopped_mesh is not None
        and group.cause not in _NOT_A_RESCALE
    )
    if group is None or not rescaling:
        return draft.condition(
            ConditionType.RESCALING,
            holds=False,
            reason=Reason.NOT_RESCALING,
            message="No change of the group is under way.",
        )
    return draft.condition(
        ConditionType.RESCALING,
        holds=True,
        reason=group.cause,
        message=f"The group changes from {group.stopped_mesh} to {group.mesh}.",
    )


def _requeue_s(draft: _Draft, wish: Wish, policy: Policy, *, settled: bool) -> float:
    """Return when to look again: often while something is about to happen."""
    group = draft.status.group
    live = any(pod.live for pod in draft.seen.own)
    if settled and group is not None and group.trained:
        wait_s = policy.poll_s
    else:
        wait_s = policy.forming_poll_s if live else EVENTS_S
    times = [
        retry_time(draft.status.restarts),
        _deadline(wish.spec, draft.status),
        draft.seen.refusal.retry_time if draft.seen.refusal else None,
    ]
    ahead = [(time - draft.now).total_seconds() for time in times if time and time > draft.now]
    return min([wait_s, *ahead])

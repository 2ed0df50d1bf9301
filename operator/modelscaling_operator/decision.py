"""The decision: from what is wished, what is seen and the time, to what is done and said.

Pure, and made anew each time. The status is written before the actions are carried out, so what
must not be forgotten (the group's number, the failures counted) is safe when the operator dies in
between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.protocol import AgentState, StopMode
from modelscaling_operator.accepted_spec import describe_spec
from modelscaling_operator.breakage import is_awaited
from modelscaling_operator.draft import EVENTS_S, IDLE_S, Decision, Draft
from modelscaling_operator.ending import (
    await_last_ranks,
    deadline_of,
    end_run,
    find_finisher,
    given_up,
    keep_after_end,
)
from modelscaling_operator.failure import fatal_failure, retry_time
from modelscaling_operator.group import MEETS_WITHIN_S, Question, form_group, tell_again
from modelscaling_operator.ledger import owes_entry
from modelscaling_operator.placement import (
    leaving_pods,
    missing_pods,
    relabelled_pods,
    spent_pods,
)
from modelscaling_operator.pod import have_same_template, template_image
from modelscaling_operator.presence import Presence, presences
from modelscaling_operator.progress import describe_unsaved
from modelscaling_operator.rescaling import is_as_wished, say_rescaling
from modelscaling_operator.roles import Roles, assign_roles
from modelscaling_operator.rollover import old_pods_stay, outdated_members
from modelscaling_operator.running import describe_running, group_trains
from modelscaling_operator.source_run import await_source, refuse_source
from modelscaling_operator.stall import say_stalled
from modelscaling_operator.winding import wind_down
from modelscaling_operator.wish import Rejection

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from modelscaling_operator.action import Action
    from modelscaling_operator.observation import Observation
    from modelscaling_operator.wish import Wish


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the operator's settings say about decisions."""

    trainer_image: str
    """Image of pods where the template has none."""
    poll_s: float
    """Seconds between two looks at a group that trains."""
    forming_poll_s: float = 0.25
    """Seconds between two looks at pods that start and a group that forms."""


def decide(  # noqa: PLR0911 - an ordered list of guards
    wish: Wish | Rejection, seen: Observation, now: datetime, policy: Policy
) -> Decision:
    """Return what to do about a run."""
    draft = Draft.begin(wish, seen, now)
    if seen.status.completion_time is not None:
        return keep_after_end(draft, wish)
    finisher = find_finisher(seen)
    if finisher is not None:
        return await_last_ranks(draft, finisher)
    verdict = fatal_failure(seen) or given_up(wish, draft)
    if verdict is not None:
        return end_run(draft, ConditionType.FAILED, verdict)
    if isinstance(wish, Rejection):
        return _rejected(draft, wish, policy)
    refused = refuse_source(wish, seen)
    if refused is not None:
        return _rejected(draft, refused, policy)
    draft = _say_accepted(draft, wish).update(accepted_spec=describe_spec(wish))
    if wish.spec.suspend or wish.spec.replicas == 0:
        return _suspend(draft, wish)
    draft = draft.condition(
        ConditionType.SUSPENDED,
        holds=False,
        reason=Reason.NOT_SUSPENDED,
        message="The run is to train.",
    )
    ready = await_source(draft, wish)
    if isinstance(ready, Decision):
        return ready
    draft = ready
    seen = replace(seen, status=draft.status)
    if outdated_members(wish, seen) and not old_pods_stay(wish, seen, now):
        return _replace_template(draft, wish)
    return _train(draft, wish, policy)


def _say_accepted(draft: Draft, wish: Wish) -> Draft:
    refusal = wish.refusal
    if refusal is None:
        draft = draft.update(rejected_growth=None)  # another model is declared by now
    return draft.condition(
        ConditionType.ACCEPTED,
        holds=refusal is None,
        reason=refusal.reason if refusal else Reason.ACCEPTED,
        message=refusal.message if refusal else "The spec is valid.",
    )


def _rejected(draft: Draft, wish: Rejection, policy: Policy) -> Decision:
    """Start nothing; leave what trains alone, if something does: no spec of it was accepted that is
    known.
    """
    draft = draft.condition(
        ConditionType.ACCEPTED, holds=False, reason=wish.reason, message=wish.message
    )
    if group_trains(draft.seen, draft.now):
        return draft.finish(requeue_s=policy.poll_s)
    draft = draft.not_running(wish.reason, "The spec is not valid; see the condition Accepted.")
    return draft.finish(requeue_s=EVENTS_S if draft.seen.own else IDLE_S)


def _suspend(draft: Draft, wish: Wish) -> Decision:
    """Save the run and give its pods back."""
    reason = Reason.SUSPENDED if wish.spec.suspend else Reason.SCALED_TO_ZERO
    if not draft.seen.own:
        group = draft.status.group
        if group is not None:
            # Going on later is no rescale: nothing is measured against the group of now.
            fresh = {
                "trained": False,
                "pods": (),
                "leaving": (),
                "broken": "",
                "stopped_time": None,
                "stopped_mesh": None,
            }
            draft = draft.update(group=group.model_copy(update=fresh))
        message = reason.sentence + describe_unsaved(draft.status.progress, has_ended=True)
        draft = draft.not_running(reason, message).condition(
            ConditionType.SUSPENDED, holds=True, reason=reason, message=message
        )
        return draft.finish()
    unsaved = describe_unsaved(draft.status.progress)
    draft = draft.not_running(Reason.SUSPENDING, Reason.SUSPENDING.sentence + unsaved)
    if _is_about_to_train(draft):
        return draft.finish([tell_again(wish, draft.seen)], requeue_s=1)
    actions = wind_down(
        draft.seen,
        draft.seen.own,
        mode=StopMode.SUSPEND,
        keep_ended=False,
        since=draft.conditions.since(ConditionType.RUNNING),
        now=draft.now,
    )
    return draft.finish(actions, requeue_s=1)


def _is_about_to_train(draft: Draft) -> bool:
    """Whether a group has just begun to take the state over, or meets again as one of its workers
    has died: told to stop by now, its members would end with what they hold.
    """
    group, seen, now = draft.status.group, draft.seen, draft.now
    if group is None or group.broken or group_trains(seen, now):
        return False
    if not group.trained and group.stopped_mesh is None:
        return False
    since = draft.conditions.since(ConditionType.RUNNING) if group.trained else group.decided_time
    agents = [seen.agent(pod) for pod in seen.members if pod and pod.live]
    stop = {AgentState.STOPPING, AgentState.ENDED}
    return (
        now < since + timedelta(seconds=MEETS_WITHIN_S)
        and len(agents) == group.members
        and not any(agent is not None and agent.state in stop for agent in agents)
    )


def _replace_template(draft: Draft, wish: Wish) -> Decision:
    """Save and end every pod of another template; those of the new one follow."""
    unsaved = describe_unsaved(draft.status.progress)
    draft = draft.not_running(Reason.TEMPLATE_CHANGED, Reason.TEMPLATE_CHANGED.sentence + unsaved)
    if _is_about_to_train(draft):
        return draft.finish([tell_again(wish, draft.seen)], requeue_s=1)
    group = draft.status.group
    assert group is not None
    broken = group.model_copy(update={"broken": Reason.TEMPLATE_CHANGED.value})
    draft = draft.update(group=broken)
    actions = wind_down(
        draft.seen,
        [pod for pod in draft.seen.own if pod.revision != wish.revision],
        mode=StopMode.SUSPEND,
        keep_ended=False,
        since=draft.conditions.since(ConditionType.RUNNING),
        now=draft.now,
    )
    return draft.finish(actions, requeue_s=1)


def _train(draft: Draft, wish: Wish, policy: Policy) -> Decision:
    """Have the wished pods, and the group of them."""
    seen, now = draft.seen, draft.now
    image = template_image(wish.spec) or _present_image(wish, seen) or policy.trainer_image
    if draft.status.start_time is None:
        draft = draft.update(start_time=now.replace(microsecond=0))
    seen = replace(seen, status=draft.status)
    present = presences(seen, now)
    roles = assign_roles(wish, seen, present, now)
    formation = form_group(
        Question(
            wish=wish,
            seen=seen,
            present=present,
            roles=roles,
            waiting_since=_waiting_since(draft, present),
            stopped_time=_stopped_time(draft),
            now=now,
        )
    )
    draft = draft.update(group=formation.group, image=image)
    seen = replace(seen, status=draft.status)
    draft = _say_running(draft, wish, seen, roles)
    actions: list[Action | None] = [
        # First what steps wait for.
        formation.assign,
        missing_pods(seen, roles, present, image, now),
        *spent_pods(seen, present, now),
        *leaving_pods(seen, roles, present, now),
        *relabelled_pods(seen, roles),
    ]
    return draft.finish(actions, requeue_s=_requeue_s(draft, wish, policy, seen))


def _waiting_since(draft: Draft, present: Mapping[str, Presence]) -> datetime:
    """Return since when pods are awaited: by a group that trains, since it was to change; else
    since the run was to start or its group was lost.
    """
    conditions = draft.conditions
    group = draft.status.group
    told = group.pods if group else ()
    if told and all(present.get(uid) is Presence.ABLE for uid in told):
        is_known = conditions.holds(ConditionType.RESCALING)
        return conditions.since(ConditionType.RESCALING) if is_known else draft.now
    return max(
        draft.status.start_time or draft.now,
        conditions.since(ConditionType.SUSPENDED),
        _stopped_time(draft),
    )


def _stopped_time(draft: Draft) -> datetime:
    """Return since when the run does not train; now if it does."""
    if draft.conditions.holds(ConditionType.RUNNING):
        return draft.now
    return draft.conditions.since(ConditionType.RUNNING)


def _present_image(wish: Wish, seen: Observation) -> str:
    """Return the image of the present pods of the same template: those of a group must be alike,
    and so must those that hand state over to others, whatever the operator's own default is by now.
    """
    alike = (pod for pod in seen.own if have_same_template(pod.revision, wish.revision))
    return next((pod.image for pod in alike if pod.deletion_deadline is None), "")


def _say_running(draft: Draft, wish: Wish, seen: Observation, roles: Roles) -> Draft:
    refusal = seen.refusal
    if refusal is not None and refusal.reason is Reason.INVALID_TEMPLATE:
        draft = draft.condition(
            ConditionType.ACCEPTED, holds=False, reason=refusal.reason, message=refusal.message
        )
    running = describe_running(wish, seen, roles, draft.now)
    draft = draft.condition(
        ConditionType.RUNNING, holds=running.holds, reason=running.reason, message=running.message
    )
    return say_stalled(say_rescaling(draft, wish, seen, roles, draft.now))


def _requeue_s(draft: Draft, wish: Wish, policy: Policy, seen: Observation) -> float:
    """Return when to look again: often while something is about to happen."""
    group = draft.status.group
    if group is not None and group.trained and not _stirs(wish, seen, draft.now):
        wait_s = policy.poll_s
    else:
        is_any_live = any(pod.has_agent for pod in seen.own)
        wait_s = policy.forming_poll_s if is_any_live else EVENTS_S
    times = [
        retry_time(draft.status.restarts),
        deadline_of(wish.spec, draft.status),
        draft.seen.refusal.retry_time if draft.seen.refusal else None,
    ]
    ahead = [(time - draft.now).total_seconds() for time in times if time and time > draft.now]
    return min([wait_s, *ahead])


def _stirs(wish: Wish, seen: Observation, now: datetime) -> bool:
    """Whether agents are about to have news: one starts in a pod that is wanted, one has fallen
    silent, the group breaks up, or it has yet to tell what its change cost. A pod that waits for a
    node is told of by the API server.
    """
    group = seen.status.group
    if group is not None and (group.broken or owes_entry(group, now)):
        return True
    if any(is_awaited(pod, seen, now) for pod in seen.members if pod):
        return True
    if is_as_wished(wish, seen):
        return False
    agents = [seen.agent(pod) for pod in seen.own if pod.live]
    return any(agent is None or agent.state is AgentState.STARTING for agent in agents)

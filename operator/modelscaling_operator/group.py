"""Who trains together: when another group is to be formed, of whom, and on which mesh.

A group that trains goes on until every pod of the one that is wished can follow. One that cannot
stay as it is (a member is lost or told to leave) is replaced at once, by as many pods as the run is
content with. Whoever may hold a part of the state and is not in the new group comes along to hand
it over.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from modelscaling.api.conditions import Reason
from modelscaling.api.group_status import GroupStatus
from modelscaling_operator.action import Assign
from modelscaling_operator.breakage import (
    holders,
    is_awaited,
    is_coming_to_its_end,
    note_breakage,
)
from modelscaling_operator.failure import broken_group, retry_time
from modelscaling_operator.growing import describe_model
from modelscaling_operator.ledger import owes_entry
from modelscaling_operator.membership import assignment, in_rank_order, present_assignment
from modelscaling_operator.rollover import outdated_members, waits_for_save

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from modelscaling.protocol import GroupAssignment
    from modelscaling_operator.observation import Observation, Pod
    from modelscaling_operator.presence import Presence
    from modelscaling_operator.roles import Roles
    from modelscaling_operator.wish import Wish

LOSSES = frozenset({Reason.GROUP_BROKE.value, Reason.NODE_LOST.value, Reason.PODS_SEVERED.value})
"""Causes that nobody planned."""
MEETS_WITHIN_S = 60
"""Seconds in which a group that takes the state over, or meets again after a loss, is thought to
come to train by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Formation:
    """The group as it should be, and whom to tell."""

    group: GroupStatus | None
    assign: Assign | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What the next group is decided from."""

    wish: Wish
    seen: Observation
    present: Mapping[str, Presence]
    roles: Roles
    waiting_since: datetime
    """Since when pods are awaited that do not come."""
    stopped_time: datetime
    """Since when the present group is known not to train; now where it does."""
    now: datetime

    @property
    def is_patience_over(self) -> bool:
        """Whether an elastic run does with those that have come."""
        patience = timedelta(seconds=self.wish.spec.elastic.patience_seconds)
        return self.now >= self.waiting_since + patience

    @property
    def group(self) -> GroupStatus | None:
        """The present group."""
        return self.seen.status.group


def form_group(question: Question) -> Formation:
    """Return the group to have now, and whom to tell of it."""
    question = _with_breakage(question)
    group, seen, now = question.group, question.seen, question.now
    if group is not None and is_coming_to_its_end(seen, now):
        return Formation(group=group)
    pods = _choose(question)
    if pods is None or _has_just_begun(question) or _waits_for_save(question):
        return _keep(question)
    wished = assignment(question.wish, seen, pods)
    if wished is None or (group and not _must_change(question) and wished.digest() == group.digest):
        return _keep(question)
    wait = retry_time(seen.status.restarts)
    if broken_group(seen) is not None and wait is not None and now < wait:
        return _keep(question)
    chosen = frozenset(pod.uid for pod in pods)
    leaving = [pod for pod in holders(seen, question.present) if pod.uid not in chosen]
    if any(is_awaited(pod, seen, now) for pod in leaving):
        return _keep(question)
    return _new_group(question, pods, tuple(pod for pod in leaving if seen.agent(pod)))


def _with_breakage(question: Question) -> Question:
    group = question.group
    if group is None:
        return question
    noted = note_breakage(group, question.seen, question.present, question.now)
    status = question.seen.status.model_copy(update={"group": noted})
    return replace(question, seen=replace(question.seen, status=status))


def _must_change(question: Question) -> bool:
    """Whether the present group cannot go on, or never comes to be."""
    group, seen = question.group, question.seen
    if group is None or not group.pods or group.broken:
        return True
    agents = [agent for pod in seen.members if pod and (agent := seen.agent(pod))]
    if any(agent.generation > group.generation for agent in agents):
        return True
    is_half_told = any(agent.generation < group.generation for agent in agents)
    return is_half_told and present_assignment(question.wish, seen) is None


def _has_just_begun(question: Question) -> bool:
    """Whether the present group is to do its first step before it is changed by plan again: what
    its own change cost would never be known else. Pods of another template also wait for a group
    that still meets, as the run is to be saved before they go on with it.
    """
    group = question.group
    if group is None or _must_change(question):
        return False
    if not group.trained and not outdated_members(question.wish, question.seen):
        return False
    return owes_entry(group, question.now)


def _waits_for_save(question: Question) -> bool:
    """Whether pods of another template are kept back until a save succeeds: only a group that
    trains, or comes to again soon, will make one.
    """
    is_over = question.now >= question.stopped_time + timedelta(seconds=MEETS_WITHIN_S)
    if is_over or _must_change(question):
        return False
    return waits_for_save(question.wish, question.seen)


def _choose(question: Question) -> tuple[Pod, ...] | None:
    """Return the pods of the group to have, in the order of their ranks; None to keep what is."""
    roles, replicas = question.roles, question.wish.spec.replicas
    able = frozenset(pod.uid for pod in roles.able)
    is_complete = len(roles.wished) == replicas
    if is_complete and all(pod.uid in able for pod in roles.wished):
        return in_rank_order(roles.wished, question.seen)
    # While pods of an edited template are awaited, those before them do without the lost ones.
    old = roles.outdated if _must_change(question) else ()
    return _first_that_works(
        question, old, (replicas, *_smaller_sizes(question, old))
    ) or _first_that_works(question, roles.able, _smaller_sizes(question, roles.able))


def _first_that_works(
    question: Question, pods: tuple[Pod, ...], sizes: Iterable[int]
) -> tuple[Pod, ...] | None:
    """Return the group of the first of these sizes that there are pods and a mesh for."""
    for size in sizes:
        if size <= len(pods) and question.wish.plan_for(size) is not None:
            return in_rank_order(pods[:size], question.seen)
    return None


def _smaller_sizes(question: Question, pods: tuple[Pod, ...]) -> range:
    """Return the sizes that the run is content with while it waits for its replicas, the largest
    first, where these pods are able to be its group.
    """
    group, replicas = question.group, question.wish.spec.replicas
    fewest = question.wish.spec.elastic.min_replicas
    able = frozenset(pod.uid for pod in pods)
    none = range(0)
    if not _must_change(question):
        is_whole = group is not None and all(uid in able for uid in group.pods)
        if fewest is None or not is_whole or not question.is_patience_over or group is None:
            return none
        return range(replicas - 1, max(fewest, group.members) - 1, -1)
    told = (*group.pods, *group.leaving) if group else ()
    survives = any(uid in able for uid in told)
    if fewest is not None:
        is_due = survives or question.is_patience_over
        return range(replicas - 1, fewest - 1, -1) if is_due else none
    if group is not None and survives and group.members < replicas:
        # What the run waits for never came to be: it goes on at the size that it has had.
        return range(group.members, group.members - 1, -1)
    return none


def _keep(question: Question) -> Formation:
    """Keep the present group; tell it again to those that have not heard of it."""
    return Formation(group=question.group, assign=tell_again(question.wish, question.seen))


def tell_again(wish: Wish, seen: Observation) -> Assign | None:
    """Return the present group for those that have not heard of it; None where all have, or it
    cannot stay as it is.
    """
    group = seen.status.group
    told = present_assignment(wish, seen)
    if group is None or group.broken or told is None:
        return None
    pods = seen.members if group.trained else (*seen.members, *seen.leavers)
    behind = tuple(
        pod
        for pod in pods
        if pod and (agent := seen.agent(pod)) and agent.generation < group.generation
    )
    return Assign(assignment=told, pods=behind) if behind else None


def _new_group(question: Question, pods: tuple[Pod, ...], leaving: tuple[Pod, ...]) -> Formation:
    wish, seen, before = question.wish, question.seen, question.group
    agents = (seen.agent(pod) for pod in seen.own)
    newest = max((agent.generation for agent in agents if agent), default=0)
    generation = max(newest, before.generation if before else 0) + 1
    told = assignment(wish, seen, pods, leaving=leaving, generation=generation)
    assert told is not None  # a size without a legal mesh is never chosen
    group = GroupStatus(
        generation=generation,
        digest=told.digest(),
        members=len(pods),
        pods=tuple(pod.uid for pod in pods),
        leaving=tuple(pod.uid for pod in leaving),
        replicas=wish.spec.replicas,
        processes=told.mesh.size,
        mesh=str(told.mesh),
        model=describe_model(wish.configuration),
        cause=_cause(question, told, pods),
        decided_time=question.now,
        **_measured_against(question),
    )
    return Formation(group=group, assign=Assign(assignment=told, pods=(*pods, *leaving)))


def _cause(  # noqa: PLR0911 - an ordered list of guards
    question: Question, told: GroupAssignment, pods: tuple[Pod, ...]
) -> str:
    wish, before = question.wish, question.group
    if before is None or not (before.trained or before.stopped_mesh):
        return Reason.STARTED
    if before.broken in {*LOSSES, Reason.GROWTH_REJECTED}:
        return before.broken
    if not before.trained:
        # What led to a group that never trained led to this one too.
        return before.cause
    if before.broken:
        return before.broken
    if before.model and before.model != describe_model(wish.configuration):
        return Reason.MODEL_GROWN
    if outdated_members(wish, question.seen) and pods[0].revision == wish.revision:
        return Reason.TEMPLATE_CHANGED
    if before.replicas != wish.spec.replicas:
        return Reason.REPLICAS_CHANGED
    if set(before.pods) != {pod.uid for pod in pods}:
        return Reason.PODS_CHANGED
    if before.mesh != str(told.mesh):
        return Reason.PARALLELISM_CHANGED
    return Reason.SETTINGS_CHANGED


def _measured_against(question: Question) -> dict[str, object]:
    """Return when and on which mesh the run last trained before the new group."""
    before = question.group
    if before is None:
        return {}
    if not before.trained:
        return {"stopped_time": before.stopped_time, "stopped_mesh": before.stopped_mesh}
    return {"stopped_time": question.stopped_time, "stopped_mesh": before.mesh}

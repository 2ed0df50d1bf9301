"""Who is in a group as messages and ranks: assignments made from pods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelscaling.protocol import GroupAssignment, Member

if TYPE_CHECKING:
    from collections.abc import Iterable

    from modelscaling_operator.observation import Observation, Pod
    from modelscaling_operator.wish import Wish


def assignment(
    wish: Wish,
    seen: Observation,
    pods: Iterable[Pod],
    *,
    leaving: Iterable[Pod] = (),
    generation: int = 0,
) -> GroupAssignment | None:
    """Return the assignment of these pods in this order; None if no mesh is legal for so many."""
    members = tuple(_member(pod) for pod in pods)
    plan = wish.plan_for(len(members))
    if plan is None:
        return None
    progress = seen.status.progress
    return GroupAssignment(
        run_uid=seen.run.uid,
        generation=generation,
        members=members,
        mesh=plan.mesh,
        configuration=wish.configuration,
        leaving=tuple(_member(pod) for pod in leaving),
        checkpoint_step=progress.checkpoint_step if progress else None,
    )


def present_assignment(wish: Wish, seen: Observation) -> GroupAssignment | None:
    """Return what the present group's pods were told, so that it can be told again; None once a
    pod is gone or the wish says something else of them.
    """
    group = seen.status.group
    pods = [pod for pod in seen.members if pod]
    if group is None or not pods or len(pods) < group.members:
        return None
    told = assignment(
        wish,
        seen,
        pods,
        leaving=[pod for pod in seen.leavers if pod],
        generation=group.generation,
    )
    return told if told is not None and told.digest() == group.digest else None


def in_rank_order(pods: Iterable[Pod], seen: Observation) -> tuple[Pod, ...]:
    """Return pods as they are to be ranked: members of the present group keep their order, so that
    nothing moves that need not and the first rank is one that stays; newcomers follow.
    """
    group = seen.status.group
    ranks = {uid: rank for rank, uid in enumerate(group.pods)} if group else {}
    return tuple(sorted(pods, key=lambda pod: (ranks.get(pod.uid, len(ranks)), pod.index)))


def _member(pod: Pod) -> Member:
    return Member(index=pod.index, address=pod.address or "", processes=pod.processes)

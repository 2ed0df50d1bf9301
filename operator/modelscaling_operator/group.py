"""Who trains together: when the group that is wished can be formed, and when it must be."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from modelscaling.api.conditions import Reason
from modelscaling.api.status import GroupStatus
from modelscaling.protocol import AgentState, GroupAssignment, Member
from modelscaling_operator.action import Assign
from modelscaling_operator.failure import retry_time

if TYPE_CHECKING:
    from datetime import datetime

    from modelscaling.api.status import RestartStatus
    from modelscaling.protocol import AgentStatus
    from modelscaling_operator.observation import Observation, Pod
    from modelscaling_operator.wish import Wish

START_LIMIT_S = 10
"""Seconds that an agent may stay warm after it took an assignment, without a failure, before the
group is formed again."""

_ABLE = frozenset({AgentState.WARM, AgentState.FORMING, AgentState.TRAINING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Formation:
    """The group as it should be, and whom to tell."""

    group: GroupStatus | None
    assign: Assign | None = None
    settled: bool = False
    """Whether the wished group has left the former one behind: all its members form or train."""


def form_group(  # noqa: PLR0911 - an ordered list of guards
    wish: Wish, seen: Observation, restarts: RestartStatus, now: datetime
) -> Formation:
    """Return the group to have now. A new number is given only when every member can follow."""
    group = seen.status.group
    members = _members(wish, seen)
    if members is None:
        return Formation(group=group)
    pods = tuple(pod for pod, _ in members)
    agents = [agent for _, agent in members]
    newest = max((agent.generation for agent in agents), default=0)
    wished = assignment(wish, seen, pods, generation=group.generation if group else 0)
    if group is None or newest > group.generation:
        return _new_group(seen, wished, pods, cause=Reason.STARTED, newest=newest, now=now)
    if wished.digest() != group.digest:
        return _new_group(
            seen, wished, pods, cause=_cause(wish, group, agents), newest=newest, now=now
        )
    behind = tuple(pod for pod, agent in members if agent.generation < group.generation)
    if behind:
        return Formation(group=group, assign=Assign(assignment=wished, pods=behind))
    if _has_broken(agents, group, now):
        wait = retry_time(restarts)
        if wait is not None and now < wait:
            return Formation(group=group)
        return _new_group(seen, wished, pods, cause=Reason.GROUP_BROKE, newest=newest, now=now)
    settled = all(agent.state is not AgentState.WARM for agent in agents)
    return Formation(group=group, settled=settled)


def assignment(
    wish: Wish, seen: Observation, pods: tuple[Pod, ...], *, generation: int
) -> GroupAssignment:
    """Return the assignment of these pods, ranked by index."""
    return GroupAssignment(
        run_uid=seen.run.uid,
        generation=generation,
        members=tuple(
            Member(
                index=pod.index,
                address=pod.address or "",
                processes=wish.spec.processes_per_replica,
            )
            for pod in pods
        ),
        mesh=wish.plan.mesh,
        configuration=wish.configuration,
    )


def _members(wish: Wish, seen: Observation) -> list[tuple[Pod, AgentStatus]] | None:
    """Return the wished members with their agents; None unless each of them can follow."""
    members = []
    for pod in seen.own:
        agent = seen.agent(pod)
        if pod.index >= wish.spec.replicas:
            continue
        if not pod.live or pod.revision != wish.revision:
            return None
        if agent is None or agent.state not in _ABLE:
            return None
        members.append((pod, agent))
    return members if len(members) == wish.spec.replicas else None


def _has_broken(agents: list[AgentStatus], group: GroupStatus, now: datetime) -> bool:
    """Whether all members of the present group wait for another one."""
    if any(agent.state is not AgentState.WARM for agent in agents):
        return False
    if any(agent.failure is not None for agent in agents):
        return True
    return now > group.decided_time + timedelta(seconds=START_LIMIT_S)


def _cause(wish: Wish, group: GroupStatus, agents: list[AgentStatus]) -> Reason:
    mesh = wish.plan.mesh
    if (group.members, group.processes) != (len(agents), mesh.size):
        return Reason.REPLICAS_CHANGED
    if group.mesh != str(mesh):
        return Reason.PARALLELISM_CHANGED
    if any(agent.generation < group.generation for agent in agents):
        return Reason.PODS_CHANGED
    return Reason.SETTINGS_CHANGED


def _new_group(
    seen: Observation,
    wished: GroupAssignment,
    pods: tuple[Pod, ...],
    *,
    cause: Reason,
    newest: int,
    now: datetime,
) -> Formation:
    before = seen.status.group
    generation = max(newest, before.generation if before else 0) + 1
    group = GroupStatus(
        generation=generation,
        digest=wished.digest(),
        members=len(pods),
        processes=wished.mesh.size,
        mesh=str(wished.mesh),
        cause=cause.value,
        decided_time=now,
    )
    if before is not None and before.trained:
        pulse = seen.pulse
        known = pulse is not None and pulse.generation == before.generation
        group = group.model_copy(
            update={
                "stopped_time": pulse.time if pulse and known else None,
                "stopped_step": pulse.step if pulse and known else None,
                "stopped_mesh": before.mesh,
            }
        )
    elif before is not None and before.stopped_mesh is not None:
        # It never trained: what came before it is still what this one is measured against.
        group = group.model_copy(
            update={
                "cause": before.cause,
                "stopped_time": before.stopped_time,
                "stopped_step": before.stopped_step,
                "stopped_mesh": before.stopped_mesh,
            }
        )
    else:
        group = group.model_copy(update={"cause": Reason.STARTED.value})
    told = wished.model_copy(update={"generation": generation})
    return Formation(group=group, assign=Assign(assignment=told, pods=pods))

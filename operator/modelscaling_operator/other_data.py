"""Pods that do not see the data that the present group trains on, though the same is declared: a
group with one of them could not train, and is not formed. An edit of `spec.data` is no such case:
pods that have opened what is declared since are not held against those that have not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelscaling.protocol import OpenedData
    from modelscaling_operator.observation import Observation


def other_data(seen: Observation) -> Mapping[str, str]:
    """Return why these pods outside the group are not to be taken into it, by their UIDs."""
    group, trained = seen.status.group, _trained_data(seen)
    if group is None or trained is None:
        return {}
    told = frozenset((*group.pods, *group.leaving))
    others = [(pod, agent.data) for pod in seen.own if (agent := seen.agent(pod))]
    return {
        pod.uid: (
            f"pod {pod.name} sees other data in {data.data.path!r} than the pods that train: the "
            f"digest of its tokens is {data.digest}, of theirs {trained.digest}; mount the same "
            f"files into all pods, or suspend the run before it goes on with others"
        )
        for pod, data in others
        if pod.uid not in told and data is not None and _differs(data, trained)
    }


def _trained_data(seen: Observation) -> OpenedData | None:
    """Return what the present group trains on, or did last; None where nobody says so."""
    group = seen.status.group
    if group is None or not group.trained:
        return None
    agents = [agent for pod in seen.members if pod and (agent := seen.agent(pod))]
    return next(
        (agent.data for agent in agents if agent.data and agent.generation == group.generation),
        None,
    )


def _differs(data: OpenedData, other: OpenedData) -> bool:
    same_digest = other.model_copy(update={"digest": data.digest})
    return data == same_digest and data.digest != other.digest

"""Members that cannot reach each other although the operator hears both, and who of them goes.

Neither is silent, so neither is lost; but a group with both cannot train, and its workers would
wait for each other until their collective's timeout. One of each two is given up and replaced
elsewhere, as a failure: were the network broken everywhere, the run's limits end it.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from modelscaling.protocol import AgentState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from modelscaling_operator.observation import Observation, Pod

_NAMED = 5
"""Pods that a message names; the others are counted."""


def severed_pods(seen: Observation) -> Mapping[str, str]:
    """Return the pods that are to be given up, by UID, each with who cannot reach whom.

    It is the one that most others cannot reach, of equals the one of the highest index, until all
    that are left reach each other.
    """
    pods = {pod.uid: pod for pod in (*seen.members, *seen.leavers) if pod}
    missing: dict[str, set[str]] = defaultdict(set)
    for one, other in _cuts(seen, pods.values()):
        missing[one].add(other)
        missing[other].add(one)
    severed: dict[str, str] = {}
    while any(missing.values()):
        worst = max(missing, key=lambda uid: (len(missing[uid]), pods[uid].index))
        peers = missing.pop(worst)
        severed[worst] = _describe(pods[worst], [pods[uid] for uid in peers])
        for peer in peers:
            missing[peer].remove(worst)
    return severed


def _cuts(seen: Observation, pods: Iterable[Pod]) -> Iterator[tuple[str, str]]:
    """Yield the pods, by UID, of which one cannot reach the other, as it says."""
    group = seen.status.group
    agents = ((pod, seen.agent(pod)) for pod in pods if not pod.ended)
    heard = {
        pod.index: (pod, agent)
        for pod, agent in agents
        if agent is not None and agent.state not in {AgentState.STOPPING, AgentState.ENDED}
    }
    for pod, agent in heard.values():
        if group is None or agent.generation != group.generation:
            continue
        others = (heard[index][0] for index in agent.unreachable if index in heard)
        yield from ((pod.uid, other.uid) for other in others)


def _describe(severed: Pod, peers: list[Pod]) -> str:
    first = sorted(peers, key=lambda pod: pod.index)[:_NAMED]
    named = ", ".join(pod.name for pod in first)
    more = f" and {len(peers) - _NAMED} more" if len(peers) > _NAMED else ""
    return (
        f"pod {severed.name} and {named}{more} cannot reach each other, while the operator hears "
        f"all of them; pod {severed.name} is replaced. Look at the network between their nodes, "
        f"and at NetworkPolicies"
    )

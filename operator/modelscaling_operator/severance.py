"""Members that cannot reach each other although the operator hears both, and who of them goes.

Neither is silent, so neither is lost; but a group with both cannot train, and its workers would
wait for each other until their collective's timeout. One of each two is given up and replaced
elsewhere, as a failure: were the network broken everywhere, the run's limits end it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelscaling.protocol import AgentState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from modelscaling_operator.observation import Observation, Pod

_NAMED = 5
"""Pods that a message names; the others are counted."""


def severed_pods(seen: Observation) -> Mapping[str, str]:
    """Return the pods that are to be given up, by UID, each with who cannot reach whom.

    It is the one that most others cannot reach, of equals the one of the highest index, until all
    that are left reach each other.
    """
    pods = {pod.uid: pod for pod in (*seen.members, *seen.leavers) if pod}
    cuts = set(_cuts(seen, pods))
    severed: dict[str, str] = {}
    while cuts:
        peers = {uid: [p for p in pods.values() if _pair(pods[uid], p) in cuts] for uid in pods}
        worst = max(pods.values(), key=lambda pod: (len(peers[pod.uid]), pod.index))
        severed[worst.uid] = _describe(worst, peers[worst.uid])
        cuts -= {_pair(worst, peer) for peer in peers[worst.uid]}
    return severed


def _cuts(seen: Observation, pods: Mapping[str, Pod]) -> Iterator[frozenset[str]]:
    """Yield the pairs of which one cannot reach the other, as it says."""
    group = seen.status.group
    agents = ((pod, seen.agent(pod)) for pod in pods.values() if not pod.ended)
    heard = {
        pod.index: (pod, agent)
        for pod, agent in agents
        if agent is not None and agent.state not in {AgentState.STOPPING, AgentState.ENDED}
    }
    for pod, agent in heard.values():
        if group is None or agent.generation != group.generation:
            continue
        yield from (_pair(pod, heard[index][0]) for index in agent.unreachable if index in heard)


def _pair(one: Pod, other: Pod) -> frozenset[str]:
    return frozenset({one.uid, other.uid})


def _describe(severed: Pod, peers: list[Pod]) -> str:
    named = ", ".join(pod.name for pod in peers[:_NAMED])
    more = f" and {len(peers) - _NAMED} more" if len(peers) > _NAMED else ""
    return (
        f"pod {severed.name} and {named}{more} cannot reach each other, while the operator hears "
        f"all of them; pod {severed.name} is replaced. Look at the network between their nodes, "
        f"and at NetworkPolicies"
    )

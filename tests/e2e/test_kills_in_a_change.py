"""A pod may be killed at any point of a change: before the group switches, in the switch, after it.

The switch is held open where the pod is to be killed in it, by a worker that is stopped: of a
member, which keeps the old group from ending, or of the newcomer, which keeps the new one from
meeting.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from signal import SIGCONT, SIGSTOP
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.in_pods import check_checkpoints, signal_worker, wait_for_attempt
from tests.e2e.steady import (
    assert_followed,
    begin,
    finish,
    is_settled,
    lost_steps,
    saved,
    wait_for_pods,
)

if TYPE_CHECKING:
    from demo.kubectl import Cluster
    from tests.e2e.local_run import Undisturbed
    from tests.live_run import LiveRun

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(400),
    pytest.mark.usefixtures("operator"),
]


class Victim(StrEnum):
    """Which pod is killed."""

    FIRST = "first"
    OTHER = "other"
    CHANGING = "changing"
    """The one that comes, or one that leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The group of a run as its status has it."""

    generation: int
    pods: tuple[str, ...]
    """The names of its members by rank."""

    @classmethod
    def of(cls, run: LiveRun) -> Group:
        status = run.get()["status"]
        return cls(generation=status["group"]["generation"], pods=run.members(status))


def _kill(run: LiveRun, pod: str) -> str:
    """Kill a pod and return its UID."""
    uid = run.pods()[pod]
    run.kubectl("delete", "pod", pod, "--grace-period=0", "--force")
    return uid


def _scale(run: LiveRun, replicas: int) -> None:
    run.kubectl("scale", f"msc/{run.name}", f"--replicas={replicas}")


def _wait_for_newcomer(run: LiveRun, group: Group) -> str:
    here = (f"--selector=modelscaling.dev/name={run.name}", f"--namespace={run.namespace}")
    for pod in run.cluster.watch("pods", *here, timeout_s=60):
        name = str(pod["metadata"]["name"])
        if name not in group.pods and name in run.pods():
            return name
    raise AssertionError(f"nobody comes to {group.pods}")


def _check_recovery(run: LiveRun, replicas: int, *, without: str) -> dict[str, Any]:
    """Wait until the run trains without a pod that was killed: with the pods that it is to have and
    no others, and its last edit taken note of. Return its progress then.
    """
    status = run.wait_for(
        lambda status: is_settled(status, replicas) and without not in status["group"]["pods"],
    )
    wait_for_pods(run, status["group"]["pods"])

    assert status["observedGeneration"] == run.get()["metadata"]["generation"]
    progress: dict[str, Any] = status["progress"]
    return progress


def _pick(victim: Victim, group: Group, changing: str) -> tuple[str, str]:
    """Return the pod to kill, and a member beside it that stays in the group."""
    first, other = group.pods[:2]
    if victim is Victim.FIRST:
        return first, other
    return (other if victim is Victim.OTHER else changing), first


@pytest.mark.parametrize("victim", Victim)
def test_a_pod_may_be_killed_at_any_point_of_a_change(
    cluster: Cluster,
    run_namespace: str,
    claim: str,
    undisturbed: Undisturbed,
    victim: Victim,
) -> None:
    run = begin(cluster, run_namespace, f"killed-{victim}", checkpoint=saved(claim))

    seen = [
        _kill_before_the_switch(run, victim),
        _kill_while_the_new_group_meets(run, victim),
        _kill_after_the_switch(run, victim),
        _kill_while_the_old_group_ends(run, victim),
    ]
    check_checkpoints(run)
    status = finish(run, undisturbed)

    assert_followed(seen, undisturbed)
    assert lost_steps(status) == 0


def _kill_before_the_switch(run: LiveRun, victim: Victim) -> dict[str, Any]:
    """Two replicas become three; a pod is killed while the third one starts."""
    group = Group.of(run)
    _scale(run, 3)
    pod, _ = _pick(victim, group, _wait_for_newcomer(run, group))
    return _check_recovery(run, 3, without=_kill(run, pod))


def _kill_while_the_new_group_meets(run: LiveRun, victim: Victim) -> dict[str, Any]:
    """Three replicas become four; a pod is killed when all others have come to the new group."""
    group = Group.of(run)
    _, stopped = _pick(victim, group, group.pods[-1])
    signal_worker(run, stopped, SIGSTOP)
    _scale(run, 4)
    run.wait_for(lambda status: status["group"]["generation"] > group.generation)
    wider = Group.of(run)
    newcomer = wider.pods[-1]
    signal_worker(run, newcomer, SIGSTOP)
    signal_worker(run, stopped, SIGCONT)
    wait_for_attempt(run, wider.pods[0], 1, generation=wider.generation, state="Forming")
    pod, _ = _pick(victim, wider, newcomer)
    killed = _kill(run, pod)
    if pod != newcomer:
        signal_worker(run, newcomer, SIGCONT)
    return _check_recovery(run, 4, without=killed)


def _kill_while_the_old_group_ends(run: LiveRun, victim: Victim) -> dict[str, Any]:
    """Four replicas become two; a pod is killed before the four came to a step's end."""
    group = Group.of(run)
    pod, stopped = _pick(victim, group, group.pods[-1])
    signal_worker(run, stopped, SIGSTOP)
    _scale(run, 2)
    run.wait_for(lambda status: status["group"]["generation"] > group.generation)
    killed = _kill(run, pod)
    signal_worker(run, stopped, SIGCONT)
    return _check_recovery(run, 2, without=killed)


def _kill_after_the_switch(run: LiveRun, victim: Victim) -> dict[str, Any]:
    """A pod is killed of the four that have just begun to train."""
    group = Group.of(run)
    pod, _ = _pick(victim, group, group.pods[-1])
    return _check_recovery(run, 4, without=_kill(run, pod))

"""The condition `Stalled`: no step is done for long, and who is in the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelscaling.api.conditions import ConditionType, Reason

if TYPE_CHECKING:
    from modelscaling.protocol import LateWorker
    from modelscaling_operator.draft import Draft
    from modelscaling_operator.observation import Observation, Pod


def say_stalled(draft: Draft) -> Draft:
    """Return the draft with the condition: True while agents of the group name late workers.

    The message says nothing that changes from one look to the next; since when is the condition's
    time of transition.
    """
    late = sorted(_late_workers(draft.seen), key=lambda found: _order(found[1]))
    if not late:
        return draft.calm(ConditionType.STALLED, Reason.STEPS_DONE)
    pod, worker = late[0]
    others = f"; {len(late) - 1} others wait" if len(late) > 1 else ""
    # Its peers are late as well, and will be said to be within moments, unless all wait.
    does = "waits for its peers" if worker.is_waiting else "does not come on"
    return draft.condition(
        ConditionType.STALLED,
        holds=True,
        reason=Reason.NO_STEP,
        message=(
            f"No step after step {worker.step}: rank {worker.rank} in pod {pod.name} "
            f"{does}{others}."
        ),
    )


def _late_workers(seen: Observation) -> list[tuple[Pod, LateWorker]]:
    group = seen.status.group
    found: list[tuple[Pod, LateWorker]] = []
    for pod in seen.members:
        agent = seen.agent(pod) if pod else None
        if pod is None or agent is None or group is None:
            continue
        if agent.generation == group.generation:
            found.extend((pod, worker) for worker in agent.late)
    return found


def _order(worker: LateWorker) -> tuple[bool, int, int]:
    """One that waits is late because of another; the one furthest behind holds the others up."""
    return (worker.is_waiting, worker.step, worker.rank)

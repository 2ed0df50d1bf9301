"""What a decision asks to be done: data, which `act.py` carries out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelscaling.protocol import GroupAssignment, StopMode
    from modelscaling_operator.observation import Pod


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatePods:
    """Create the pods of these indexes, and before them what they rely on."""

    indexes: tuple[int, ...]
    image: str
    avoid_nodes: tuple[str, ...] = ()
    """Nodes that were just lost, which the scheduler does not know yet."""
    source_uid: str | None = None
    """Of the run whose checkpoint they begin with."""


NOTHING_TO_SAVE_S = 2
"""Grace of a pod that is in no group. One that just starts does not hear that it is to end, and
would take all of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletePod:
    """Delete this very pod (by its UID)."""

    pod: Pod
    grace_s: int | None = None
    """Seconds that its processes have to end by themselves; 0 does not wait for the kubelet either,
    which may not answer, and None leaves what the pod itself says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelPod:
    """Label a pod as a spare, or as one that is none any more."""

    pod: Pod
    is_spare: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Assign:
    """Tell agents who trains together."""

    assignment: GroupAssignment
    pods: tuple[Pod, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Tell an agent to save and end."""

    pod: Pod
    generation: int
    mode: StopMode


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteRun:
    """Delete the ModelScaling itself, and everything with it."""


Action = CreatePods | DeletePod | LabelPod | Assign | Stop | DeleteRun

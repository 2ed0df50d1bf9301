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


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletePod:
    """Delete this very pod (by its UID)."""

    pod: Pod
    force: bool = False
    """Without waiting for a kubelet that does not answer."""


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


Action = CreatePods | DeletePod | Assign | Stop | DeleteRun

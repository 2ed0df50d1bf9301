"""What the pod template says of the trainer's resources, as far as planning needs it.

The template is the user's and is not checked here: what cannot be read is taken as not said, and
the API server says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelscaling.api.modelscaling import TRAINER_CONTAINER
from modelscaling.byte_size import parse_byte_size

_COMMON = ("cpu", "memory", "ephemeral-storage", "hugepages-")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerResources:
    """What the container that trains is given."""

    memory: int | None
    """Its memory limit in bytes; None without one."""
    has_device: bool
    """Whether it asks for a device of any vendor, such as nvidia.com/gpu."""


def trainer_resources(template: Mapping[str, Any]) -> TrainerResources:
    """Return the resources of the template's container `trainer`."""
    containers = _mapping(template.get("spec")).get("containers")
    trainer: Mapping[str, Any] = next(
        (
            container
            for container in map(_mapping, containers if isinstance(containers, list) else ())
            if container.get("name") == TRAINER_CONTAINER
        ),
        {},
    )
    limits = _mapping(_mapping(trainer.get("resources")).get("limits"))
    return TrainerResources(
        memory=_bytes(limits.get("memory")),
        has_device=any(not str(name).startswith(_COMMON) for name in limits),
    )


def _mapping(value: Any) -> Mapping[str, Any]:  # noqa: ANN401 - any JSON
    return value if isinstance(value, Mapping) else {}


def _bytes(value: Any) -> int | None:  # noqa: ANN401 - any JSON
    try:
        return parse_byte_size(value)
    except ValueError:
        return None

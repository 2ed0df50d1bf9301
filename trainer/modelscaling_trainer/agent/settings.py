"""An agent's settings: who it is, what it trains, where things are, how long it waits."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import TypeAdapter, ValidationError

from modelscaling.configuration import RunConfiguration
from modelscaling.mesh import Mesh
from modelscaling.protocol import (
    AGENT_PORT,
    CHECKPOINT_MOUNT,
    CONFIGURATION_FILE,
    GRACE_PERIOD_S,
    KEY_FILE,
    MESH_FILE,
    SCRATCH_MOUNT,
    AgentEnvironment,
)
from modelscaling_trainer.agent.fencing import Identity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_TERMINATION_GRACE_S = GRACE_PERIOD_S - 10.0
"""What is left of the grace period is for the report."""
_SAVE_S = 25.0
"""How much of it is kept for a checkpoint, if the others do not go on without the pod."""

_T = TypeVar("_T")


class AgentOverride(StrEnum):
    """Environment variables that replace what is fixed in a pod, for other places to run in."""

    CONFIGURATION_FILE = "MODELSCALING_CONFIGURATION_FILE"
    KEY_FILE = "MODELSCALING_KEY_FILE"
    CHECKPOINT_DIRECTORY = "MODELSCALING_CHECKPOINT_DIRECTORY"
    """Where the run is saved; without it the run's mount, if there is one."""
    SCRATCH_DIRECTORY = "MODELSCALING_SCRATCH_DIRECTORY"
    TERMINATION_LOG = "MODELSCALING_TERMINATION_LOG"
    """The file of the container's termination message."""
    BIND_ADDRESS = "MODELSCALING_BIND_ADDRESS"
    """The address that is listened on; without it all of the pod's."""
    PORT = "MODELSCALING_PORT"
    TERMINATION_GRACE_SECONDS = "MODELSCALING_TERMINATION_GRACE_SECONDS"
    """How long the workers may save after SIGTERM: less than terminationGracePeriodSeconds of
    the pod, after which nothing is reported any more."""


class SettingsError(Exception):
    """The environment does not say what an agent must know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """What the agent needs of its surroundings, in a pod and on a laptop alike."""

    identity: Identity
    configuration: RunConfiguration
    """What the workers warm up with."""
    scratch: Path
    checkpoint_directory: Path | None
    mesh: Mesh | None = None
    """What the workers prepare for; None where that is not known."""
    stop_at_step: int | None = None
    """Where the run ends early; None trains to its end."""
    shares_machine: bool = True
    """Whether other processes may need the same cores."""
    termination_grace_s: float = _TERMINATION_GRACE_S
    """From SIGTERM until workers that are still saving are killed."""
    leave_timeout_s: float = 0.0
    """From SIGTERM until the workers save and end, if no group has been formed without them."""
    stop_timeout_s: float = 300.0
    """The same from the operator's request to stop."""
    reform_timeout_s: float = 120.0
    """From a new assignment until workers that are still in the old group abandon it."""
    forming_timeout_s: float = 300.0
    """How long the leader is asked where the group meets."""
    most_breaks: int | None = None
    """How many times the group may break without a new step before the run has failed; None leaves
    that to the operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSettings:
    """What an agent in a pod needs beside: names, key, addresses."""

    agent: AgentSettings
    namespace: str
    name: str
    key: bytes = field(repr=False)
    termination_log: Path
    bind_address: str | None
    """None listens on all addresses."""
    port: int


def termination_log(environment: Mapping[str, str]) -> Path:
    """Return the file of the termination message, which is written even if settings are wrong."""
    return Path(environment.get(AgentOverride.TERMINATION_LOG, "/dev/termination-log"))


def read_pod_settings(environment: Mapping[str, str]) -> PodSettings:
    """Return the settings of a pod's agent from its environment and the files it names.

    Raises:
        SettingsError: a variable or a file is missing or cannot be read.
    """
    grace_s = _variable(
        environment, AgentOverride.TERMINATION_GRACE_SECONDS, float, _TERMINATION_GRACE_S
    )
    agent = AgentSettings(
        identity=Identity(
            run_uid=_variable(environment, AgentEnvironment.RUN_UID, str),
            index=_variable(environment, AgentEnvironment.INDEX, int),
            processes=_variable(environment, AgentEnvironment.PROCESSES, int),
        ),
        configuration=_configuration(environment),
        scratch=Path(environment.get(AgentOverride.SCRATCH_DIRECTORY, SCRATCH_MOUNT)),
        checkpoint_directory=_checkpoint_directory(environment),
        mesh=_mesh(environment),
        termination_grace_s=grace_s,
        leave_timeout_s=max(0.0, grace_s - _SAVE_S),
    )
    return PodSettings(
        agent=agent,
        namespace=_variable(environment, AgentEnvironment.NAMESPACE, str),
        name=_variable(environment, AgentEnvironment.NAME, str),
        key=_file(Path(environment.get(AgentOverride.KEY_FILE, KEY_FILE))),
        termination_log=termination_log(environment),
        bind_address=environment.get(AgentOverride.BIND_ADDRESS),
        port=_variable(environment, AgentOverride.PORT, int, AGENT_PORT),
    )


def _variable(
    environment: Mapping[str, str], name: str, parse: Callable[[str], _T], default: _T | None = None
) -> _T:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if not text:
        raise SettingsError(f"{name} is not set; the operator sets it in each pod of a run")
    try:
        return parse(text)
    except ValueError:
        raise SettingsError(f"{name}={text!r} is not a number") from None


def _file(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    if not content:
        raise SettingsError(f"{path} is empty")
    return content


def _configuration(environment: Mapping[str, str]) -> RunConfiguration:
    path = Path(environment.get(AgentOverride.CONFIGURATION_FILE, CONFIGURATION_FILE))
    try:
        return RunConfiguration.model_validate_json(_file(path))
    except ValidationError as error:
        raise SettingsError(f"{path} is not a run's configuration: {error}") from None


def _mesh(environment: Mapping[str, str]) -> Mesh | None:
    """Return the mesh to prepare for. Beside the configuration; a run can do without it."""
    configuration = environment.get(AgentOverride.CONFIGURATION_FILE, CONFIGURATION_FILE)
    path = Path(configuration).with_name(Path(MESH_FILE).name)
    return TypeAdapter(Mesh).validate_json(_file(path)) if path.is_file() else None


def _checkpoint_directory(environment: Mapping[str, str]) -> Path | None:
    given = environment.get(AgentOverride.CHECKPOINT_DIRECTORY)
    if given:
        return Path(given)
    return Path(CHECKPOINT_MOUNT) if os.path.isdir(CHECKPOINT_MOUNT) else None  # noqa: PTH112

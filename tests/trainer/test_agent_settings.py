from __future__ import annotations

from pathlib import Path

import pytest

from modelscaling.protocol import AGENT_PORT, AgentEnvironment
from modelscaling_trainer.agent.settings import (
    AgentOverride,
    SettingsError,
    read_pod_settings,
)
from tests.trainer.agent_builders import make_configuration


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """What a pod has."""
    (tmp_path / "run.json").write_text(make_configuration().model_dump_json())
    (tmp_path / "key").write_bytes(b"\x00secret\n")
    return {
        AgentEnvironment.NAMESPACE: "default",
        AgentEnvironment.NAME: "tiny",
        AgentEnvironment.RUN_UID: "0b6c1a7e",
        AgentEnvironment.INDEX: "3",
        AgentEnvironment.PROCESSES: "2",
        AgentEnvironment.ADDRESS: "10.0.0.4",
        AgentOverride.CONFIGURATION_FILE: str(tmp_path / "run.json"),
        AgentOverride.KEY_FILE: str(tmp_path / "key"),
    }


def test_a_pod_says_who_it_is_and_what_it_trains(environment: dict[str, str]) -> None:
    settings = read_pod_settings(environment)

    assert (settings.namespace, settings.name) == ("default", "tiny")
    assert settings.agent.identity.index == 3
    assert settings.agent.identity.processes == 2
    assert settings.agent.configuration == make_configuration()
    assert settings.key == b"\x00secret\n"
    assert settings.port == AGENT_PORT
    assert settings.bind_address is None
    assert settings.termination_log == Path("/dev/termination-log")
    assert settings.agent.scratch == Path("/tmp")
    assert settings.agent.checkpoint_directory is None


def test_every_place_can_be_another_one(environment: dict[str, str], tmp_path: Path) -> None:
    environment |= {
        AgentOverride.CHECKPOINT_DIRECTORY: str(tmp_path / "checkpoints"),
        AgentOverride.SCRATCH_DIRECTORY: str(tmp_path / "scratch"),
        AgentOverride.TERMINATION_LOG: str(tmp_path / "termination"),
        AgentOverride.BIND_ADDRESS: "127.0.0.1",
        AgentOverride.PORT: "9999",
        AgentOverride.TERMINATION_GRACE_SECONDS: "2.5",
    }

    settings = read_pod_settings(environment)

    assert settings.agent.checkpoint_directory == tmp_path / "checkpoints"
    assert settings.agent.scratch == tmp_path / "scratch"
    assert settings.termination_log == tmp_path / "termination"
    assert (settings.bind_address, settings.port) == ("127.0.0.1", 9999)
    assert settings.agent.termination_grace_s == 2.5


@pytest.mark.parametrize(
    ("grace", "leave_timeout_s"),
    [
        pytest.param("50", 25, id="half of it to be left, half of it to save"),
        pytest.param("2.5", 0, id="no time but to save"),
    ],
)
def test_a_pod_has_time_to_save_when_the_others_do_not_go_on_without_it(
    environment: dict[str, str], grace: str, leave_timeout_s: float
) -> None:
    environment[AgentOverride.TERMINATION_GRACE_SECONDS] = grace

    assert read_pod_settings(environment).agent.leave_timeout_s == leave_timeout_s


def test_the_key_is_not_shown(environment: dict[str, str]) -> None:
    assert "secret" not in repr(read_pod_settings(environment))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (AgentEnvironment.NAME, "", "MODELSCALING_NAME is not set"),
        (AgentEnvironment.INDEX, "first", "MODELSCALING_INDEX='first' is not a number"),
        (AgentOverride.KEY_FILE, "/nowhere/key", "/nowhere/key cannot be read: No such file"),
        (AgentOverride.KEY_FILE, "/dev/null", "/dev/null is empty"),
        (AgentOverride.CONFIGURATION_FILE, "/proc/self/comm", "is not a run's configuration"),
    ],
)
def test_what_is_missing_or_wrong_is_named(
    environment: dict[str, str], name: str, value: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        read_pod_settings(environment | {name: value})

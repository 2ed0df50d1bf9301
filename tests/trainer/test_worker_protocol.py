from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from modelscaling.exit_code import ExitCode
from modelscaling.mesh import Mesh
from modelscaling_trainer.request import Outcome, Request
from modelscaling_trainer.worker_protocol import (
    Abandon,
    Alive,
    Ask,
    Command,
    DataOpened,
    Event,
    FiguresTaken,
    GroupEnded,
    GroupLost,
    Join,
    PhaseBegan,
    Prepare,
    ProgressMade,
    StoreOpened,
    Warm,
    WorkerFailed,
    encode,
    parse_command,
    parse_event,
)
from tests.trainer.agent_builders import (
    make_configuration,
    make_data,
    make_figures,
    make_progress,
)

COMMANDS: list[Command] = [
    Prepare(
        configuration=make_configuration(),
        local_rank=1,
        scratch=Path("/tmp"),
        checkpoint_directory=None,
    ),
    Join(
        generation=3,
        attempt=2,
        mesh=Mesh(dataReplicate=4),
        leavers=1,
        rank=2,
        local_rank=0,
        store_host="10.0.0.1",
        store_port=4242,
        configuration=make_configuration(),
    ),
    Ask(generation=3, attempt=2, request=Request.REFORM),
    Abandon(generation=3, attempt=2, why="pod 1 is lost"),
]
EVENTS: list[Event] = [
    DataOpened(data=make_data()),
    Warm(),
    StoreOpened(generation=3, attempt=2, port=4242),
    PhaseBegan(generation=3, attempt=2, phase="Training"),
    ProgressMade(generation=3, attempt=2, progress=make_progress()),
    FiguresTaken(generation=3, attempt=2, figures=make_figures()),
    GroupEnded(generation=3, attempt=2, outcome=Outcome.STOPPED),
    GroupLost(generation=3, attempt=2, message="rank 1\nis gone"),
    WorkerFailed(exit_code=ExitCode.CONFIGURATION, reason="NoData", message="no file → none"),
    Alive(is_waiting=True),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.kind)
def test_a_command_is_one_line_and_comes_back(command: Command) -> None:
    line = encode(command)

    assert line.count(b"\n") == 1
    assert parse_command(line) == command


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.kind)
def test_an_event_is_one_line_and_comes_back(event: Event) -> None:
    line = encode(event)

    assert line.count(b"\n") == 1
    assert parse_event(line) == event


def test_what_is_no_event_is_refused() -> None:
    with pytest.raises(ValidationError, match="kind"):
        parse_event(encode(COMMANDS[2]))

"""What an agent and its workers say to each other: one JSON object a line.

Commands come on the worker's standard input, events leave on a pipe of their own; standard error
carries logs. A command or an event about a group carries the group's generation, so that what was
meant for an older group does not touch a newer one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from modelscaling.configuration import Message, RunConfiguration
from modelscaling.exit_code import ExitCode
from modelscaling.mesh import Mesh
from modelscaling.protocol import GrowthRejection, OpenedData, Progress
from modelscaling_trainer.figures import ProcessFigures
from modelscaling_trainer.request import Outcome, Request

CHECKPOINT_FAILED = "CheckpointFailed"
"""The reason of what only a checkpoint is at fault for: all that was trained is still held."""


class Prepare(Message):
    """Warm up: the first command that a worker gets."""

    kind: Literal["Prepare"] = "Prepare"
    configuration: RunConfiguration
    local_rank: int
    """Which of the pod's workers it is, and so which device it takes."""
    scratch: Path
    checkpoint_directory: Path | None
    is_newcomer: bool = False
    """Whether its pod has been in no group yet: it is not warm before its volume can be read, so
    that nobody waits for it in a group. Else its group waits, and keeps what it holds."""
    mesh: Mesh | None = None
    """What it will probably train on; None where nobody knows."""
    stop_at_step: int | None = None
    """Where the run ends early; None trains to its end."""


class Join(Message):
    """Form a group with others and train in it."""

    kind: Literal["Join"] = "Join"
    generation: int
    attempt: int
    mesh: Mesh
    leavers: int
    """How many processes come only to hand their state over; their ranks follow those of the
    mesh."""
    rank: int
    local_rank: int
    store_host: str
    store_port: int | None
    """None for rank 0, which hosts the store."""
    configuration: RunConfiguration
    """Another one than the worker's own makes it build a new run first."""
    checkpoint_step: int | None = None
    """The newest checkpoint that the run is known to have."""


class Ask(Message):
    """Ask for something at the next step boundary of a group."""

    kind: Literal["Ask"] = "Ask"
    generation: int
    attempt: int
    request: Request
    mesh: Mesh | None = None
    """What comes next, to be made ready for before anything stops; None where that is not known."""


class Abandon(Message):
    """Leave a group at once, wherever it is: one of its members is known to be gone."""

    kind: Literal["Abandon"] = "Abandon"
    generation: int
    attempt: int
    why: str


class DataOpened(Message):
    """The worker has opened the data of its run, or of the one that it has become."""

    kind: Literal["DataOpened"] = "DataOpened"
    data: OpenedData


class Warm(Message):
    """The worker is ready for a group."""

    kind: Literal["Warm"] = "Warm"


class StoreOpened(Message):
    """Rank 0 hosts the group's store on this port."""

    kind: Literal["StoreOpened"] = "StoreOpened"
    generation: int
    attempt: int
    port: int


class PhaseBegan(Message):
    """What the worker does now: Forming, Loading, Training, Compiling, Validating or Saving."""

    kind: Literal["PhaseBegan"] = "PhaseBegan"
    generation: int
    attempt: int
    phase: str


class ProgressMade(Message):
    """A step is done; only rank 0 says so, as all ranks have the same numbers."""

    kind: Literal["ProgressMade"] = "ProgressMade"
    generation: int
    attempt: int
    progress: Progress


class FiguresTaken(Message):
    """What the process measured of itself in a step."""

    kind: Literal["FiguresTaken"] = "FiguresTaken"
    generation: int
    attempt: int
    figures: ProcessFigures


class GroupEnded(Message):
    """Training ended well; the worker waits for a group again."""

    kind: Literal["GroupEnded"] = "GroupEnded"
    generation: int
    attempt: int
    outcome: Outcome


class GroupLost(Message):
    """The group broke: a peer is gone, or a checkpoint could not be written. The worker keeps what
    it holds, and waits for a group again.
    """

    kind: Literal["GroupLost"] = "GroupLost"
    generation: int
    attempt: int
    message: str
    reason: str = "GroupLost"
    """One word in CamelCase."""


class GrowthRejected(Message):
    """The group ended before its first step, as the growth of its model is taken back. The worker
    keeps what it held before, and waits for a group again.
    """

    kind: Literal["GrowthRejected"] = "GrowthRejected"
    generation: int
    attempt: int
    rejection: GrowthRejection


class WorkerFailed(Message):
    """The worker cannot go on; a new one has to take its place, or the run has failed."""

    kind: Literal["WorkerFailed"] = "WorkerFailed"
    exit_code: ExitCode
    reason: str
    message: str


class Alive(Message):
    """Where the worker is in its step; sent by a thread of its own as long as the process runs."""

    kind: Literal["Alive"] = "Alive"
    is_waiting: bool
    """Whether it waits for its peers."""


Command = Prepare | Join | Ask | Abandon
Event = (
    DataOpened
    | Warm
    | StoreOpened
    | PhaseBegan
    | ProgressMade
    | FiguresTaken
    | GroupEnded
    | GroupLost
    | GrowthRejected
    | WorkerFailed
    | Alive
)

_COMMANDS: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="kind")])
_EVENTS: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def encode(message: Command | Event) -> bytes:
    """Return the message as one line."""
    return message.model_dump_json().encode() + b"\n"


def parse_command(line: bytes) -> Command:
    """Return the command in a line; pydantic's `ValidationError` if there is none."""
    return _COMMANDS.validate_json(line)


def parse_event(line: bytes) -> Event:
    """Return the event in a line; pydantic's `ValidationError` if there is none."""
    return _EVENTS.validate_json(line)

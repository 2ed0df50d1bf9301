from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pytest

from modelscaling.exit_code import ExitCode
from modelscaling.mesh import Mesh
from modelscaling_trainer.errors import (
    CheckpointError,
    ConfigurationError,
    DivergedError,
    GroupLostError,
    GrowthRejectedError,
)
from modelscaling_trainer.request import Outcome, Request, Requests
from modelscaling_trainer.worker_link import AgentLink
from modelscaling_trainer.worker_loop import work
from modelscaling_trainer.worker_protocol import (
    Abandon,
    Ask,
    Command,
    DataOpened,
    Event,
    FiguresTaken,
    GroupEnded,
    GroupLost,
    GrowthRejected,
    Join,
    PhaseBegan,
    Prepare,
    ProgressMade,
    StoreOpened,
    Warm,
    WorkerFailed,
    encode,
    parse_event,
)
from tests.trainer.agent_builders import (
    make_configuration,
    make_data,
    make_figures,
    make_progress,
    make_rejection,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from modelscaling.configuration import RunConfiguration
    from modelscaling.protocol import OpenedData, Progress
    from modelscaling_trainer.figures import ProcessFigures
    from modelscaling_trainer.group import Group

TIMEOUT_S = 10
CONFIGURATION = make_configuration()
OTHER_CONFIGURATION = make_configuration(training__seed=1)
FIGURES = make_figures()


@dataclass
class ScriptedRun:
    """A run that makes one step in each group, and then ends as its script says."""

    script: list[Outcome | Exception]
    groups: list[Group] = field(default_factory=list)
    configurations: list[RunConfiguration] = field(default_factory=list)
    """Those that it was given after the first."""

    @property
    def data(self) -> OpenedData:
        """Other data with each configuration."""
        return make_data(f"digest-{len(self.configurations)}")

    def reconfigure(self, configuration: RunConfiguration) -> None:
        self.configurations.append(configuration)

    def train(
        self,
        group: Group,
        *,
        requests: Requests,  # noqa: ARG002 - it ends by its script
        on_store_port: Callable[[int], None],
        on_progress: Callable[[Progress], None],
        on_phase: Callable[[str], None],
        on_figures: Callable[[ProcessFigures], None] | None = None,
    ) -> Outcome:
        self.groups.append(group)
        if group.rank == 0:
            on_store_port(4242)
        on_phase("Training")
        on_progress(make_progress(step=1))
        assert on_figures is not None
        on_figures(FIGURES)
        end = self.script.pop(0)
        if isinstance(end, Exception):
            raise end
        return end


class PatientRun(ScriptedRun):
    """A run that trains until it is asked for something."""

    def train(self, group: Group, *, requests: Requests, **_: object) -> Outcome:
        self.groups.append(group)
        deadline = threading.Event()
        timer = threading.Timer(TIMEOUT_S, deadline.set)
        timer.start()
        asked: frozenset[Request] = frozenset()
        while not asked and not deadline.is_set():
            asked = requests.take()
        timer.cancel()
        assert asked == {Request.REFORM}
        return Outcome.STOPPED


class Agent:
    """The other end of the link."""

    def __init__(self) -> None:
        commands_read, commands_write = os.pipe()
        events_read, events_write = os.pipe()
        self.gone = threading.Event()
        self.opened: list[OpenedData] = []
        """The data that the worker has said it opened, so far."""
        self._commands_end = os.fdopen(commands_read, "rb")
        self._events_end = os.fdopen(events_write, "wb")
        self.link = AgentLink(
            commands=self._commands_end, events=self._events_end, on_agent_gone=self.gone.set
        )
        self.commands: BinaryIO = os.fdopen(commands_write, "wb", buffering=0)
        self.events: BinaryIO = os.fdopen(events_read, "rb")
        self.link.start()

    def tell(self, *commands: Command) -> None:
        for command in commands:
            self.commands.write(encode(command))

    def hear(self) -> Event:
        """Return the next event but for those that name the data, which are kept."""
        while isinstance(event := parse_event(self.events.readline()), DataOpened):
            self.opened.append(event.data)
        return event

    def close(self) -> None:
        self.commands.close()
        assert self.gone.wait(TIMEOUT_S)
        for file in (self.events, self._commands_end, self._events_end):
            file.close()


@pytest.fixture
def agent() -> Iterator[Agent]:
    agent = Agent()
    yield agent
    agent.close()


def prepare() -> Prepare:
    return Prepare(
        configuration=CONFIGURATION,
        local_rank=0,
        scratch=Path("scratch"),
        checkpoint_directory=None,
    )


def join(
    generation: int = 1,
    *,
    attempt: int = 1,
    rank: int = 0,
    leavers: int = 0,
    configuration: RunConfiguration = CONFIGURATION,
) -> Join:
    return Join(
        generation=generation,
        attempt=attempt,
        mesh=Mesh(dataReplicate=2),
        leavers=leavers,
        rank=rank,
        local_rank=0,
        store_host="10.0.0.1",
        store_port=4242 if rank else None,
        configuration=configuration,
    )


END = DivergedError("the end of the script")
ENDED = WorkerFailed(
    exit_code=ExitCode.DIVERGED, reason="Diverged", message="the end of the script"
)


def test_rank_0_tells_all_that_happens_in_a_group(agent: Agent) -> None:
    agent.tell(prepare(), join(1), join(2))

    work(agent.link, lambda _: ScriptedRun([Outcome.COMPLETE, END]))

    assert [agent.hear() for _ in range(6)] == [
        Warm(),
        StoreOpened(generation=1, attempt=1, port=4242),
        PhaseBegan(generation=1, attempt=1, phase="Training"),
        ProgressMade(generation=1, attempt=1, progress=make_progress(step=1)),
        FiguresTaken(generation=1, attempt=1, figures=FIGURES),
        GroupEnded(generation=1, attempt=1, outcome=Outcome.COMPLETE),
    ]


def test_other_ranks_leave_the_progress_to_rank_0(agent: Agent) -> None:
    agent.tell(prepare(), join(1, rank=1))

    work(agent.link, lambda _: ScriptedRun([END]))

    assert [agent.hear() for _ in range(4)] == [
        Warm(),
        PhaseBegan(generation=1, attempt=1, phase="Training"),
        FiguresTaken(generation=1, attempt=1, figures=FIGURES),
        ENDED,
    ]


def test_a_worker_joins_the_next_group_after_one_was_lost(agent: Agent) -> None:
    run = ScriptedRun([GroupLostError("rank 1 is gone"), Outcome.STOPPED, END])
    agent.tell(prepare(), join(1, rank=1), join(2, rank=1), join(5))

    work(agent.link, lambda _: run)

    events = [agent.hear() for _ in range(11)]
    assert GroupLost(generation=1, attempt=1, message="rank 1 is gone") in events
    assert GroupEnded(generation=2, attempt=1, outcome=Outcome.STOPPED) in events
    assert [(group.generation, group.rank) for group in run.groups] == [(1, 1), (2, 1), (5, 0)]


def test_a_worker_says_why_growth_is_taken_back_and_joins_the_next_group(agent: Agent) -> None:
    rejection = make_rejection()
    run = ScriptedRun([GrowthRejectedError(rejection), Outcome.STOPPED, END])
    agent.tell(prepare(), join(1, rank=1), join(2, rank=1), join(3, rank=1))

    work(agent.link, lambda _: run)

    events = [agent.hear() for _ in range(7)]
    assert GrowthRejected(generation=1, attempt=1, rejection=rejection) in events
    assert GroupEnded(generation=2, attempt=1, outcome=Outcome.STOPPED) in events


def test_the_run_is_told_of_another_configuration_once_and_keeps_what_it_holds(
    agent: Agent,
) -> None:
    built: list[Prepare] = []
    run = ScriptedRun([Outcome.STOPPED, Outcome.STOPPED, END])

    def build(order: Prepare) -> ScriptedRun:
        built.append(order)
        return run

    agent.tell(prepare(), join(1), join(2, configuration=OTHER_CONFIGURATION))
    agent.tell(join(3, configuration=OTHER_CONFIGURATION))

    work(agent.link, build)

    assert [order.configuration for order in built] == [CONFIGURATION]
    assert run.configurations == [OTHER_CONFIGURATION]
    assert len(run.groups) == 3
    while not isinstance(agent.hear(), WorkerFailed):
        pass
    assert agent.opened == [make_data("digest-0"), make_data("digest-1")]


def test_a_request_reaches_its_own_group_and_no_other(agent: Agent) -> None:
    run = PatientRun([])
    worker = threading.Thread(target=work, args=(agent.link, lambda _: run), daemon=True)
    agent.tell(
        prepare(),
        join(1, rank=1),
        Ask(generation=1, attempt=1, request=Request.REFORM),
        join(2, rank=1),
        Ask(generation=1, attempt=1, request=Request.STOP),
        Ask(generation=2, attempt=1, request=Request.REFORM),
    )

    worker.start()

    assert [agent.hear() for _ in range(3)] == [
        Warm(),
        GroupEnded(generation=1, attempt=1, outcome=Outcome.STOPPED),
        GroupEnded(generation=2, attempt=1, outcome=Outcome.STOPPED),
    ]


class HangingRun(ScriptedRun):
    """A run that waits for a peer until its connections are cut, and then ends by its script."""

    def train(self, group: Group, *, requests: Requests, **_: object) -> Outcome:
        self.groups.append(group)
        cut = threading.Event()
        with requests.on_abandon(cut.set):
            assert cut.wait(TIMEOUT_S)
        end = self.script.pop(0)
        assert isinstance(end, Exception)
        raise end


@pytest.mark.parametrize(
    ("error", "message", "reason"),
    [
        (GroupLostError("rank 1 is gone"), "rank 1 is gone", "GroupLost"),
        (RuntimeError("Socket closed"), "RuntimeError: Socket closed", "GroupLost"),
        (DivergedError("loss is nan"), "DivergedError: loss is nan", "GroupLost"),
        # A peer said the same first, and that broke the group.
        (CheckpointError("disk full"), "disk full", "CheckpointFailed"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_an_abandoned_group_raises_the_worker_waits_for_the_next(
    agent: Agent, error: Exception, message: str, reason: str
) -> None:
    run = HangingRun([error])
    worker = threading.Thread(target=work, args=(agent.link, lambda _: run), daemon=True)
    worker.start()
    agent.tell(
        prepare(),
        join(2, attempt=3),
        Abandon(generation=2, attempt=2, why="an older one"),
        Abandon(generation=2, attempt=3, why="pod 1 is lost"),
    )

    assert [agent.hear() for _ in range(2)] == [
        Warm(),
        GroupLost(generation=2, attempt=3, message=message, reason=reason),
    ]


def test_a_worker_that_leaves_has_a_rank_behind_the_mesh(agent: Agent) -> None:
    run = ScriptedRun([Outcome.RELEASED, END])
    agent.tell(prepare(), join(2, attempt=4, rank=2, leavers=1), join(3, rank=1))

    work(agent.link, lambda _: run)

    leaves, _ = run.groups
    assert (leaves.attempt, leaves.is_leaver, leaves.size) == (4, True, 3)


@pytest.mark.parametrize(
    ("when", "error", "exit_code", "reason"),
    [
        ("warm-up", ConfigurationError("NoData", "no file"), ExitCode.CONFIGURATION, "NoData"),
        ("warm-up", CheckpointError("disk full"), ExitCode.CRASHED, "CheckpointFailed"),
        ("training", ConfigurationError("NoData", "no file"), ExitCode.CONFIGURATION, "NoData"),
        ("training", DivergedError("loss is nan"), ExitCode.DIVERGED, "Diverged"),
    ],
)
def test_what_ends_a_run_is_told_with_its_exit_code(
    agent: Agent, when: str, error: Exception, exit_code: ExitCode, reason: str
) -> None:
    def build(_: Prepare) -> ScriptedRun:
        if when == "warm-up":
            raise error
        return ScriptedRun([error])

    agent.tell(prepare(), join(1, rank=1))

    work(agent.link, build)

    events = [agent.hear() for _ in range(1 if when == "warm-up" else 4)]
    assert events[-1] == WorkerFailed(exit_code=exit_code, reason=reason, message=str(error))


def test_a_worker_whose_checkpoint_failed_keeps_what_it_holds_for_the_next_attempt(
    agent: Agent,
) -> None:
    run = ScriptedRun([CheckpointError("disk full"), Outcome.STOPPED, END])
    agent.tell(prepare(), join(1, rank=1), join(1, attempt=2, rank=1), join(2, rank=1))

    work(agent.link, lambda _: run)

    events = [agent.hear() for _ in range(8)]
    assert events[3] == GroupLost(
        generation=1, attempt=1, message="disk full", reason="CheckpointFailed"
    )
    assert GroupEnded(generation=1, attempt=2, outcome=Outcome.STOPPED) in events


def test_what_nobody_foresaw_is_told_before_the_process_ends(agent: Agent) -> None:
    agent.tell(prepare())

    def build(_: Prepare) -> ScriptedRun:
        raise MemoryError("no room for the model")

    with pytest.raises(MemoryError):
        work(agent.link, build)

    assert agent.hear() == WorkerFailed(
        exit_code=ExitCode.CRASHED,
        reason="WorkerFailed",
        message="MemoryError: no room for the model",
    )


def test_a_worker_whose_agent_is_gone_learns_it_while_it_waits(agent: Agent) -> None:
    agent.commands.close()

    assert agent.gone.wait(TIMEOUT_S)


def test_a_worker_whose_agent_is_gone_learns_it_when_it_speaks() -> None:
    events_read, events_write = os.pipe()
    os.close(events_read)
    gone = threading.Event()
    with (
        os.fdopen(events_write, "wb", buffering=0) as events,
        Path(os.devnull).open("rb") as nothing,
    ):
        link = AgentLink(commands=nothing, events=events, on_agent_gone=gone.set)

        link.send(Warm())

        assert gone.is_set()

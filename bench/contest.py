"""Contenders that take training steps in turns, each in processes of its own.

All have started before the first turn is measured, and wait without using a processor while it is
another's turn. So a machine that gets slower gets slower for all, and what is compared is the ratio
of two times within a round.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

_DEADLINE_S = 900.0
"""For one step on a busy machine; a first one may compile."""
_WARM_UP_TURNS = 2

_processes = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One process of a contender."""

    rank: int
    size: int
    directory: Path
    """Shared by the processes of the contender, and empty at first."""


class Train(Protocol):
    """How a contender's process trains."""

    def __call__(self, place: Place, end_turn: Callable[[], None]) -> None:
        """Train for ever, and call `end_turn` after each step."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to train."""

    name: str
    train: Train
    """Picklable."""
    processes: int = 1


@dataclass(frozen=True, slots=True)
class Ratio:
    """Of two times: the median over rounds, and the ends of the middle half."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
        """Compare times that were taken in the same rounds."""
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        if len(ratios) == 1:
            return cls(ratios[0], ratios[0], ratios[0])
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return cls(median, low, high)

    def __str__(self) -> str:
        """Return it with two decimals."""
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def hold(contenders: Sequence[Contender], *, rounds: int) -> Mapping[str, list[float]]:
    """Return the seconds of each contender's step in each round.

    Raises:
        RuntimeError: a contender's process ended; what it died of is on standard error.
        TimeoutError: one takes no step.
    """
    with ExitStack() as stack:
        teams = [stack.enter_context(_team(contender)) for contender in contenders]
        for _ in range(_WARM_UP_TURNS):
            for team in teams:
                team.take_turn()
        seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
        for _ in range(rounds):
            for team in teams:
                seconds[team.name].append(team.take_turn())
        return seconds


class _Team:
    """The processes of a contender, seen from outside."""

    def __init__(self, name: str, pipes: list[Connection]) -> None:
        self.name = name
        self._pipes = pipes

    def take_turn(self) -> float:
        """Let all processes take a step; return the seconds until the last one is done."""
        started = time.perf_counter()
        for pipe in self._pipes:
            pipe.send(None)
        self.wait()
        return time.perf_counter() - started

    def wait(self) -> None:
        """Wait until all processes have ended their turn."""
        deadline = time.monotonic() + _DEADLINE_S
        for pipe in self._pipes:
            if not pipe.poll(max(0.0, deadline - time.monotonic())):
                raise TimeoutError(f"{self.name}: no step within {_DEADLINE_S:.0f} s")
            try:
                pipe.recv()
            except EOFError:
                raise RuntimeError(f"{self.name}: a process ended; see its error above") from None


@contextmanager
def _team(contender: Contender) -> Iterator[_Team]:
    """Start a contender and wait for its first step; end its processes at the end."""
    with TemporaryDirectory() as directory, ExitStack() as stack:
        pipes = []
        for rank in range(contender.processes):
            place = Place(rank=rank, size=contender.processes, directory=Path(directory))
            pipes.append(stack.enter_context(_process(contender, place)))
        team = _Team(contender.name, pipes)
        team.wait()
        yield team


@contextmanager
def _process(contender: Contender, place: Place) -> Iterator[Connection]:
    pipe, other = _processes.Pipe()
    process: SpawnProcess = _processes.Process(
        target=_main, args=(contender.train, place, other), daemon=True
    )
    process.start()
    other.close()
    try:
        yield pipe
    finally:
        process.kill()
        process.join()
        pipe.close()


def _main(train: Train, place: Place, pipe: Connection) -> None:
    def end_turn() -> None:
        pipe.send(None)
        pipe.recv()

    train(place, end_turn)

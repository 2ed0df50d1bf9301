"""A checkpoint's writer as tests steer it."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from modelscaling.mesh import Mesh
from modelscaling_trainer.checkpoint.catalog import find_newest
from modelscaling_trainer.state import Counters
from tests.trainer.checkpoints import SINGLE, make_shards, make_state

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from modelscaling_trainer.checkpoint.writer import CheckpointWriter
    from modelscaling_trainer.shard import Shard

STATE = make_state()
TWO = Mesh(dataReplicate=2)
DEADLINE_S = 30


def save(
    writer: CheckpointWriter,
    step: int,
    *,
    shards: dict[str, Shard] | None = None,
    mesh: Mesh = SINGLE,
    rank: int = 0,
) -> None:
    writer.save(shards or make_shards(STATE, mesh, rank), Counters(step=step), learning_rate=3e-4)


def names_in(directory: Path) -> list[str]:
    """Return what there is beside the group's claim."""
    names = sorted(path.name for path in directory.iterdir())
    return [name for name in names if not name.startswith(".generation-")]


def newest_step(directory: Path) -> int | None:
    found = find_newest(directory)
    return found.counters.step if found else None


def hold(
    monkeypatch: pytest.MonkeyPatch, kind: type, method: str
) -> tuple[threading.Event, list[str], threading.Event]:
    """Hold a method back until the first event is set; the list gets its name when it has run, and
    the second event is set when it was called.
    """
    may_run, done, is_called = threading.Event(), list[str](), threading.Event()
    original = getattr(kind, method)

    def late(*arguments: object, **named: object) -> object:
        is_called.set()
        assert may_run.wait(DEADLINE_S)
        result = original(*arguments, **named)
        done.append(method)
        return result

    monkeypatch.setattr(kind, method, late)
    return may_run, done, is_called


def until_raised(writer: CheckpointWriter, end: str) -> None:
    """Call a method again and again, as a loop of steps does, until it raises."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        getattr(writer, end)()

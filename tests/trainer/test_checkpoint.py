from __future__ import annotations

import errno
import json
import logging
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import torch

from modelscaling.shape import ModelShape
from modelscaling_trainer import checkpoint
from modelscaling_trainer.checkpoint import check_shape, find_newest, prune, read, write
from modelscaling_trainer.errors import CheckpointError, ConfigurationError
from modelscaling_trainer.state import Counters

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SHAPE = ModelShape(
    layers=1,
    hidden_size=8,
    heads=2,
    kv_heads=1,
    head_size=4,
    feed_forward_size=8,
    vocabulary_size=16,
    context_length=8,
    tied_embeddings=True,
)


def save(directory: Path, step: int) -> Path:
    tensors = {f"model.{name}": torch.full((64, 3), float(step)) for name in "ab"}
    write(directory, tensors, Counters(step=step), SHAPE)
    return directory / f"step-{step:08d}"


def newest_step(directory: Path) -> int | None:
    found = find_newest(directory)
    return found.counters.step if found else None


def steps(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    counters = Counters(step=3, tokens=96, sample_digest="ab", useful_seconds=1.5, started_at=7.0)
    tensors = {"model.a": torch.randn(5, 3), "exp_avg.a": torch.randn(7)}
    write(tmp_path, tensors, counters, SHAPE)
    found = find_newest(tmp_path)
    assert found is not None
    loaded = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
    found.load(loaded)

    assert counters == found.counters
    assert all(torch.equal(tensors[name], loaded[name]) for name in tensors)
    check_shape(found, SHAPE)


def _truncate(path: Path) -> None:
    file = next(path.glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:-1])


def _delete(path: Path) -> None:
    next(path.glob("*.distcp")).unlink()


def _garble_description(path: Path) -> None:
    (path / "checkpoint.json").write_text('{"format": 1')


def _delete_description(path: Path) -> None:
    (path / "checkpoint.json").unlink()


@pytest.mark.parametrize(
    "tear",
    [_truncate, _delete, _garble_description, _delete_description],
    ids=["cut short", "a file lost", "description garbled", "description lost"],
)
def test_a_torn_checkpoint_is_skipped_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tear: Any
) -> None:
    save(tmp_path, 100)
    torn = save(tmp_path, 200)
    tear(torn)
    with caplog.at_level(logging.WARNING):
        found = newest_step(tmp_path)

    assert found == 100
    assert str(torn) in caplog.text


def test_an_excepted_step_is_passed_over(tmp_path: Path) -> None:
    for step in (100, 200):
        save(tmp_path, step)
    found = find_newest(tmp_path, except_steps={200})

    assert found is not None
    assert found.counters.step == 100


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "step-12").mkdir()
    (tmp_path / ".writing-step-00000300-1-1").mkdir()

    assert newest_step(tmp_path) is None
    assert newest_step(tmp_path / "missing") is None


def test_damage_inside_a_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    metadata = save(tmp_path, 100) / ".metadata"
    metadata.write_bytes(b"\0" * metadata.stat().st_size)
    found = find_newest(tmp_path)
    assert found is not None

    with pytest.raises(CheckpointError, match="step-00000100 is damaged"):
        found.load({"model.a": torch.empty(64, 3)})


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    description = save(tmp_path, 1) / "checkpoint.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | {"format": 2}))

    with pytest.raises(ConfigurationError, match="has format 2, and this version reads up to 1"):
        find_newest(tmp_path)


def test_another_shape_is_refused_by_field(tmp_path: Path) -> None:
    found = read(save(tmp_path, 1))
    assert found is not None
    other = ModelShape(**{**found.model, "layers": 2, "hidden_size": 16})

    with pytest.raises(ConfigurationError, match=r"layers: 1 .*, 2 declared; hidden_size: 8"):
        check_shape(found, other)


def test_pruning_keeps_the_newest_valid_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    _truncate(tmp_path / "step-00000004")
    prune(tmp_path, keep=2)

    assert newest_step(tmp_path) == 3
    assert {"step-00000002", "step-00000003"} <= set(steps(tmp_path))
    assert "step-00000001" not in steps(tmp_path)


def test_pruning_removes_what_a_dead_writer_left_but_not_what_is_being_written(
    tmp_path: Path,
) -> None:
    dead, live = tmp_path / ".writing-dead", tmp_path / ".writing-live"
    dead.mkdir()
    live.mkdir()
    os.utime(dead, (0, 0))
    prune(tmp_path, keep=1)

    assert steps(tmp_path) == [".writing-live"]


@pytest.mark.parametrize(
    ("is_hit", "message"),
    [
        (lambda thread: thread is threading.main_thread(), "No space left on device"),
        (lambda thread: thread is not threading.main_thread(), "tensors were not written"),
    ],
    ids=["in the calling thread", "in a thread of torch's"],
)
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_hit: Callable[[threading.Thread], bool],
    message: str,
) -> None:
    save(tmp_path, 100)
    sync = os.fsync
    both_write = threading.Barrier(2, timeout=30)

    def full(descriptor: int) -> None:
        with suppress(threading.BrokenBarrierError):
            both_write.wait()
        if is_hit(threading.current_thread()):
            raise OSError(errno.ENOSPC, "No space left on device")
        both_write.abort()  # the files that follow are written without waiting
        sync(descriptor)

    monkeypatch.setattr("os.fsync", full)
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    with pytest.raises(CheckpointError, match=message):
        save(tmp_path, 200)

    assert steps(tmp_path) == ["step-00000100"]
    assert newest_step(tmp_path) == 100


def test_a_step_that_is_there_already_stays_and_a_torn_one_is_replaced(tmp_path: Path) -> None:
    path = save(tmp_path, 100)
    inode = path.stat().st_ino
    save(tmp_path, 100)
    assert path.stat().st_ino == inode
    _truncate(path)
    save(tmp_path, 100)

    assert inode != path.stat().st_ino
    assert newest_step(tmp_path) == 100


def test_the_format_knows_no_mesh(tmp_path: Path) -> None:
    description = json.loads((save(tmp_path, 1) / "checkpoint.json").read_text())

    assert set(description) == {"format", "counters", "model", "files"}
    assert description["format"] == checkpoint.FORMAT

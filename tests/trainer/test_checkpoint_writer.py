from __future__ import annotations

import errno
import logging
import os
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from modelscaling.growth.trained_model import TrainedModel
from modelscaling.mesh import Mesh
from modelscaling_trainer.checkpoint.attempt import Attempt
from modelscaling_trainer.checkpoint.catalog import find_newest
from modelscaling_trainer.checkpoint.staging import Staging
from modelscaling_trainer.checkpoint.writer import CheckpointWriter
from modelscaling_trainer.errors import CheckpointError, DivergedError
from modelscaling_trainer.state import Counters
from tests.trainer.checkpoint_writers import (
    DEADLINE_S,
    STATE,
    TWO,
    hold,
    names_in,
    newest_step,
    save,
    until_raised,
)
from tests.trainer.checkpoints import (
    SHAPE,
    SINGLE,
    differing,
    forget,
    make_shards,
    make_writer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from modelscaling_trainer.checkpoint.part import Block


def fail_part(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the disk be full when a file of this name is brought to it."""
    sync = os.fsync

    def full(descriptor: int) -> None:
        if name in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr("os.fsync", full)


def test_what_changes_after_settling_does_not_reach_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write, written, _ = hold(monkeypatch, Attempt, "write")
    shards, writer = make_shards(STATE, SINGLE, 0), make_writer(tmp_path)
    save(writer, 5, shards=shards)
    writer.settle()
    assert written == []
    forget(shards)
    may_write.set()
    writer.wait()

    found = find_newest(tmp_path)
    assert found is not None
    assert found.counters.step == writer.written_step == 5
    found.load(shards)
    assert differing(shards, STATE) == []


def test_settling_waits_for_the_copy_and_saving_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_copy, order, _ = hold(monkeypatch, Staging, "copy")
    writer = make_writer(tmp_path)
    save(writer, 1)
    order.append("saved")
    may_copy.set()
    writer.settle()
    order.append("settled")
    writer.wait()

    assert order == ["saved", "copy", "settled"]


def test_memory_that_is_prepared_for_one_state_saves_another(tmp_path: Path) -> None:
    writer, shards = make_writer(tmp_path), make_shards(STATE, SINGLE, 0)
    writer.prepare(make_shards(STATE, Mesh(pipeline=2), 0))
    save(writer, 1, shards=shards)
    writer.wait()
    forget(shards)
    found = find_newest(tmp_path)
    assert found is not None
    found.load(shards)

    assert differing(shards, STATE) == []


def test_settling_without_a_save_returns(tmp_path: Path) -> None:
    make_writer(tmp_path).settle()


@pytest.mark.parametrize("end", ["settle", "wait"])
def test_a_state_that_is_not_finite_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    checked = _checked(monkeypatch)
    writer = make_writer(tmp_path)
    save(writer, 100)
    writer.wait()
    checked.clear()
    shards = make_shards(STATE, SINGLE, 0)
    shards["exp_avg_sq.layers.3.mlp.up_proj.weight"].tensor[1, 2] = torch.inf
    save(writer, 200, shards=shards)
    assert checked.wait(DEADLINE_S)

    with pytest.raises(DivergedError, match=r"step 200 is not finite.*learningRate=0.0003"):
        until_raised(writer, end)
    assert names_in(tmp_path) == ["step-00000100"]


def _checked(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Return an event that is set when a copy has been checked."""
    checked = threading.Event()
    original = Staging.is_finite

    def check(staging: Staging) -> bool:
        result = original(staging)
        checked.set()
        return result

    monkeypatch.setattr(Staging, "is_finite", check)
    return checked


def test_a_part_that_is_not_finite_ends_the_whole_checkpoint(tmp_path: Path) -> None:
    mesh = Mesh(dataShard=2)
    writers = [make_writer(tmp_path, rank=rank, ranks=2) for rank in range(2)]
    shards = [make_shards(STATE, mesh, rank) for rank in range(2)]
    shards[1]["model.norm.weight"].tensor[0] = torch.nan
    for writer, held in zip(writers, shards, strict=True):
        save(writer, 1, shards=held)

    for writer in reversed(writers):
        with pytest.raises(DivergedError, match="state of step 1 is not finite"):
            writer.wait()
    assert names_in(tmp_path) == []


def test_the_copies_of_a_state_share_the_work(tmp_path: Path) -> None:
    writers = [make_writer(tmp_path, rank=rank, ranks=2) for rank in range(2)]
    for rank, writer in enumerate(writers):
        save(writer, 1, mesh=TWO, rank=rank)
    for writer in writers:
        writer.wait()
    sizes = [path.stat().st_size for path in (tmp_path / "step-00000001").glob("part-*")]

    assert len(sizes) == 2
    assert max(sizes) < 0.7 * sum(sizes)
    assert [writer.written_step for writer in writers] == [1, None]
    assert writers[0].written_seconds is not None


def test_old_checkpoints_go_as_new_ones_come(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, keep=2)
    for step in (1, 2, 3):
        save(writer, step)
    writer.wait()

    assert names_in(tmp_path) == ["step-00000002", "step-00000003"]


def test_a_save_that_failed_is_named_and_the_next_one_is_tried(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "run"
    directory.write_text("in the way")
    writer = make_writer(directory)
    with caplog.at_level(logging.WARNING):
        save(writer, 1)
        _until_failed(writer)
    assert "make room on the volume" in caplog.text
    assert str(directory) in (writer.failure or "")
    directory.unlink()
    save(writer, 2)
    writer.wait()

    assert writer.written_step == 2
    assert writer.failure is None


def _until_failed(writer: CheckpointWriter) -> None:
    """Settle again and again, as a loop of steps does, until a save has failed."""
    deadline = time.monotonic() + DEADLINE_S
    while writer.failure is None and time.monotonic() < deadline:
        writer.settle()


def test_a_part_that_failed_is_named_where_it_was_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_part(monkeypatch, "part-00001")
    writers = [make_writer(tmp_path, rank=rank, ranks=2) for rank in range(2)]
    for rank, writer in enumerate(writers):
        save(writer, 1, mesh=TWO, rank=rank)
    for writer in writers:
        _until_failed(writer)
    monkeypatch.undo()
    for rank, writer in enumerate(writers):
        save(writer, 2, mesh=TWO, rank=rank)
    for writer in writers:
        writer.wait()

    assert [writer.failure for writer in writers] == [None, None]
    assert names_in(tmp_path) == ["step-00000002"]


def test_a_volume_that_hangs_holds_up_neither_saving_nor_settling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write, *_ = hold(monkeypatch, Attempt, "write")
    writer = make_writer(tmp_path)
    save(writer, 1)
    writer.settle()
    has_begun = writer.save(
        make_shards(STATE, SINGLE, 0), Counters(step=2), learning_rate=3e-4, patience_s=0.01
    )
    writer.settle()

    assert not has_begun
    assert "step 2 is not saved, as the checkpoint before is still" in (writer.failure or "")
    may_write.set()
    save(writer, 3)
    writer.wait()
    assert names_in(tmp_path) == ["step-00000001", "step-00000003"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = make_writer(tmp_path)
    save(writer, 100)
    writer.wait()
    fail_part(monkeypatch, "part-00000")
    save(writer, 200)
    with pytest.raises(CheckpointError, match=r"below '.*': \[Errno 28\] No space left"):
        writer.wait()

    assert names_in(tmp_path) == ["step-00000100"]
    assert newest_step(tmp_path) == 100


def test_a_description_that_has_no_room_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_part(monkeypatch, "checkpoint.json")
    writer = make_writer(tmp_path)
    save(writer, 100)
    with pytest.raises(CheckpointError, match="No space left"):
        writer.wait()

    assert names_in(tmp_path) == []


@pytest.mark.parametrize("end", range(5))
def test_wherever_writing_ends_what_was_there_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: int
) -> None:
    writer = make_writer(tmp_path)
    save(writer, 100)
    writer.wait()
    order = list[str]()

    def until_end(kind: str, original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            if len(order) == end:
                raise OSError("the process died")
            order.append(kind)
            return original(*arguments)

        return call

    monkeypatch.setattr("os.fsync", until_end("sync", os.fsync))
    monkeypatch.setattr("pathlib.Path.rename", until_end("rename", Path.rename))
    monkeypatch.setattr(Attempt, "discard", lambda _: None)
    save(writer, 200)
    with pytest.raises(CheckpointError, match="the process died"):
        writer.wait()

    assert order == ["sync", "rename", "sync", "sync"][:end]
    assert names_in(tmp_path) == [".writing-step-00000200-1-a", "step-00000100"]
    assert newest_step(tmp_path) == 100


def test_rank_0_learns_at_once_that_another_rank_could_not_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_part(monkeypatch, "part-00001")
    writers = [make_writer(tmp_path, rank=rank, ranks=2, parts_timeout_s=600) for rank in range(2)]
    for rank, writer in enumerate(writers):
        save(writer, 1, mesh=TWO, rank=rank)

    with pytest.raises(CheckpointError, match=r"below '.*': \[Errno 28\] No space left"):
        writers[1].wait()
    with pytest.raises(CheckpointError, match=r"could not write part-00001: .*No space left"):
        writers[0].wait()
    assert names_in(tmp_path) == []


def test_a_ranks_own_part_is_waited_for_without_the_others(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, ranks=2, parts_timeout_s=600)
    save(writer, 1, mesh=TWO)
    writer.wait_for_part()

    assert names_in(tmp_path / ".writing-step-00000001-1-a") == ["part-00000.safetensors"]
    writer.begin_group("b", model=TrainedModel(shape=SHAPE), generation=1, rank=0, ranks=1)
    save(writer, 2)
    writer.wait()


def test_an_own_part_that_could_not_be_written_is_an_error_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_part(monkeypatch, "part-00000")
    writer = make_writer(tmp_path, ranks=2)
    save(writer, 1, mesh=TWO)

    with pytest.raises(CheckpointError, match="No space left"):
        writer.wait_for_part()
    writer.wait_for_part()
    writer.wait()


def test_a_state_is_not_held_for_a_save_that_has_its_copy(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, ranks=2)
    shards = make_shards(STATE, TWO, 0)
    held = [weakref.ref(shard.tensor) for shard in shards.values()]
    save(writer, 1, shards=shards, mesh=TWO)
    writer.settle()

    del shards

    assert held
    assert not any(tensor() is not None for tensor in held)


def test_a_part_that_never_comes_is_an_error_in_the_same_group(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, ranks=2, parts_timeout_s=0.0)
    save(writer, 1, mesh=TWO)

    with pytest.raises(CheckpointError) as failure:
        writer.wait()
    assert failure.value.message == (
        f"the checkpoint of step 1 below '{tmp_path}' is not complete: ranks 1 did not write their "
        f"parts; their logs say why"
    )
    assert names_in(tmp_path) == []


def test_a_part_that_never_comes_is_given_up_when_a_new_group_saves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = make_writer(tmp_path, token="a", ranks=2, parts_timeout_s=600)
    save(writer, 1, mesh=TWO)
    writer.begin_group("b", model=TrainedModel(shape=SHAPE), generation=1, rank=0, ranks=1)
    with caplog.at_level(logging.WARNING):
        save(writer, 2)
    writer.wait()

    assert "gave up the checkpoint of step 1: ranks 1 did not write their parts" in caplog.text
    assert names_in(tmp_path) == ["step-00000002"]


def test_a_part_that_never_comes_is_given_up_when_its_time_is_over_in_a_new_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    may_write, *_ = hold(monkeypatch, Attempt, "write")
    writer = make_writer(tmp_path, token="a", ranks=2, parts_timeout_s=0.0)
    save(writer, 1, mesh=TWO)
    writer.begin_group("b", model=TrainedModel(shape=SHAPE), generation=1, rank=0, ranks=1)
    may_write.set()
    with caplog.at_level(logging.WARNING):
        writer.wait()

    assert "gave up the checkpoint of step 1" in caplog.text
    assert names_in(tmp_path) == []


def test_a_checkpoint_is_published_after_its_group_has_parted(tmp_path: Path) -> None:
    staying, leaving = (make_writer(tmp_path, rank=rank, ranks=2) for rank in range(2))
    save(staying, 1, mesh=TWO, rank=0)
    staying.begin_group("b", model=TrainedModel(shape=SHAPE), generation=1, rank=0, ranks=1)
    save(leaving, 1, mesh=TWO, rank=1)
    leaving.wait()
    staying.wait()

    assert staying.written_step == 1
    assert newest_step(tmp_path) == 1


def test_a_slow_rank_of_a_group_that_was_given_up_trains_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = Attempt.write

    def write(attempt: Attempt, blocks: Sequence[Block], data: memoryview) -> None:
        monkeypatch.setattr("pathlib.Path.rename", _lose)
        original(attempt, blocks, data)

    def _lose(unfinished: Path, _: Path) -> None:
        make_attempt(unfinished).discard()
        raise FileNotFoundError(unfinished)

    def make_attempt(unfinished: Path) -> Attempt:
        return Attempt(
            directory=unfinished.parents[1], step=1, generation=1, token="a", rank=0, ranks=2
        )

    monkeypatch.setattr(Attempt, "write", write)
    slow = make_writer(tmp_path, rank=1, ranks=2)
    save(slow, 1, mesh=TWO, rank=1)
    with caplog.at_level(logging.WARNING):
        slow.wait()

    assert "gave up the checkpoint of step 1: the first process" in caplog.text


def test_saving_without_a_group_is_refused(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=1, tokenizer="byte")

    with pytest.raises(RuntimeError, match=r"begin_group\(\) was not called"):
        save(writer, 1)

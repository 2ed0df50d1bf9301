from __future__ import annotations

import errno
import logging
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from modelscaling.mesh import Mesh
from modelscaling_trainer.checkpoint import fence
from modelscaling_trainer.checkpoint.attempt import Attempt
from modelscaling_trainer.checkpoint.catalog import find_newest
from modelscaling_trainer.checkpoint.staging import Staging
from modelscaling_trainer.checkpoint.writer import CheckpointWriter
from modelscaling_trainer.errors import CheckpointError, DivergedError, GroupLostError
from modelscaling_trainer.state import Counters
from tests.trainer.checkpoints import (
    SHAPE,
    SINGLE,
    differing,
    forget,
    make_shards,
    make_state,
    make_writer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from modelscaling_trainer.checkpoint.part import Block
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


def fail_part(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the disk be full when a file of this name is brought to it."""
    sync = os.fsync

    def full(descriptor: int) -> None:
        if name in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr("os.fsync", full)


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
        _until_raised(writer, end)
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


def _until_raised(writer: CheckpointWriter, end: str) -> None:
    """Call a method again and again, as a loop of steps does, until it raises."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        getattr(writer, end)()


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


def test_a_claim_that_hangs_leaves_the_first_save_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_claim = threading.Event()

    def hang(_: Path, __: int) -> None:
        assert may_claim.wait(DEADLINE_S)

    monkeypatch.setattr(fence, "claim", hang)
    writer = make_writer(tmp_path)
    has_begun = writer.save(
        make_shards(STATE, SINGLE, 0), Counters(step=2), learning_rate=3e-4, patience_s=0.01
    )
    may_claim.set()

    assert not has_begun


@pytest.mark.parametrize("end", ["settle", "wait"])
def test_a_group_whose_place_was_taken_stops_saving(tmp_path: Path, end: str) -> None:
    old = make_writer(tmp_path, generation=3)
    save(old, 100)
    old.wait()
    new = make_writer(tmp_path, generation=4)
    save(new, 50)
    new.wait()
    save(old, 200)

    with pytest.raises(GroupLostError, match=r"generation 3 is over: generation 4 saves"):
        _until_raised(old, end)
    assert names_in(tmp_path) == ["step-00000050", "step-00000100"]


def test_every_rank_of_a_group_whose_place_was_taken_stops(tmp_path: Path) -> None:
    old = make_writer(tmp_path, generation=3, rank=1, ranks=2)
    fence.claim(tmp_path, 4)
    save(old, 1, mesh=TWO, rank=1)

    with pytest.raises(GroupLostError, match="generation 3 is over"):
        old.wait()


def test_a_checkpoint_that_is_ready_is_not_published_after_another_group_has_formed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_look, *_ = hold(monkeypatch, Attempt, "wait_for_parts")
    old = make_writer(tmp_path, generation=3)
    save(old, 100)
    old.wait_for_part()
    fence.claim(tmp_path, 4)
    may_look.set()

    with pytest.raises(GroupLostError, match="generation 3 is over"):
        old.wait()
    assert names_in(tmp_path) == []


def test_a_process_that_slept_before_it_published_wakes_up_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    may_publish, _, is_about_to = hold(monkeypatch, Attempt, "publish")
    old = make_writer(tmp_path, generation=3)
    save(old, 100)
    assert is_about_to.wait(DEADLINE_S)
    new = make_writer(tmp_path, generation=4, ranks=2)
    save(new, 50, mesh=TWO)
    new.wait_for_part()
    may_publish.set()
    with caplog.at_level(logging.WARNING):
        old.wait()

    assert "gave up the checkpoint of step 100: a newer group has removed it" in caplog.text
    assert names_in(tmp_path) == [".writing-step-00000050-4-a"]
    new.begin_group("b", generation=5, rank=0, ranks=1)
    save(new, 51)
    new.wait()


def test_what_was_under_way_is_published_by_a_process_that_the_next_group_has_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_look, *_ = hold(monkeypatch, Attempt, "wait_for_parts")
    leaving = make_writer(tmp_path, generation=1)
    save(leaving, 100)
    leaving.enter(2)
    fence.claim(tmp_path, 2)
    may_look.set()
    leaving.finish()

    assert newest_step(tmp_path) == leaving.written_step == 100


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
    writer.begin_group("b", generation=1, rank=0, ranks=1)
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


def test_a_part_that_never_comes_is_an_error_in_the_same_group(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, ranks=2, parts_timeout_s=0.0)
    save(writer, 1, mesh=TWO)

    with pytest.raises(CheckpointError, match="ranks 1 did not write their parts within 0 s"):
        writer.wait()
    assert names_in(tmp_path) == []


def test_a_part_that_never_comes_is_given_up_when_a_new_group_saves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = make_writer(tmp_path, token="a", ranks=2, parts_timeout_s=600)
    save(writer, 1, mesh=TWO)
    writer.begin_group("b", generation=1, rank=0, ranks=1)
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
    writer.begin_group("b", generation=1, rank=0, ranks=1)
    may_write.set()
    with caplog.at_level(logging.WARNING):
        writer.wait()

    assert "gave up the checkpoint of step 1" in caplog.text
    assert names_in(tmp_path) == []


def test_a_checkpoint_is_published_after_its_group_has_parted(tmp_path: Path) -> None:
    staying, leaving = (make_writer(tmp_path, rank=rank, ranks=2) for rank in range(2))
    save(staying, 1, mesh=TWO, rank=0)
    staying.begin_group("b", generation=1, rank=0, ranks=1)
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
    writer = CheckpointWriter(tmp_path, keep=1, shape=SHAPE)

    with pytest.raises(RuntimeError, match=r"begin_group\(\) was not called"):
        save(writer, 1)

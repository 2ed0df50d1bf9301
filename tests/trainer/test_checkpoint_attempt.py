from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from modelscaling.growth.trained_model import TrainedModel
from modelscaling_trainer.checkpoint.attempt import Attempt, GivenUpError
from modelscaling_trainer.checkpoint.catalog import find_newest
from modelscaling_trainer.checkpoint.directory import sync_directory
from modelscaling_trainer.checkpoint.part import Block, write_part
from modelscaling_trainer.errors import CheckpointError, DivergedError
from modelscaling_trainer.state import Counters
from tests.trainer.checkpoints import SHAPE, make_state, save

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NOTHING = memoryview(b"")


def make_attempt(directory: Path, rank: int = 0, *, token: str = "a", ranks: int = 2) -> Attempt:
    return Attempt(directory=directory, step=100, generation=3, token=token, rank=rank, ranks=ranks)


def wait(attempt: Attempt, *, timeout_s: float = 0.0, is_given_up: bool = False) -> None:
    give_up = threading.Event()
    if is_given_up:
        give_up.set()
    attempt.wait_for_parts(timeout_s=timeout_s, give_up=give_up)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def write_all(directory: Path, *, token: str = "a", ranks: int = 2) -> Attempt:
    for rank in range(ranks):
        make_attempt(directory, rank, token=token, ranks=ranks).write([], NOTHING)
    return make_attempt(directory, token=token, ranks=ranks)


def test_nothing_has_a_checkpoints_name_before_it_is_published(tmp_path: Path) -> None:
    attempt = write_all(tmp_path)
    before = names_in(tmp_path)
    wait(attempt)
    attempt.publish(Counters(step=100), TrainedModel(shape=SHAPE), tokenizer="byte")

    assert before == [".writing-step-00000100-3-a"]
    assert names_in(tmp_path) == ["step-00000100"]


@pytest.mark.parametrize("its_next", ["part", "note"])
def test_a_process_that_saves_another_step_by_now_is_not_waited_for(
    tmp_path: Path, its_next: str
) -> None:
    first = make_attempt(tmp_path, ranks=3)
    first.write([], NOTHING)
    make_attempt(tmp_path, 2, ranks=3).write([], NOTHING)
    for rank in (1, 2):
        later = replace(make_attempt(tmp_path, rank, ranks=3), step=102)
        if its_next == "part":
            later.write([], NOTHING)
        else:
            later.report(CheckpointError("It cannot be written."))

    with pytest.raises(GivenUpError, match="ranks 1 did not write their parts"):
        wait(first, timeout_s=60)


def test_another_group_that_saves_a_later_step_says_nothing_of_this_one(tmp_path: Path) -> None:
    first = make_attempt(tmp_path)
    first.write([], NOTHING)
    replace(make_attempt(tmp_path, 1, token="b"), step=102).write([], NOTHING)
    make_attempt(tmp_path, 1).write([], NOTHING)

    wait(first)


@pytest.mark.parametrize("is_given_up", [False, True], ids=["in time", "before it is given up"])
def test_missing_parts_are_named(tmp_path: Path, *, is_given_up: bool) -> None:
    attempt = make_attempt(tmp_path, ranks=12)
    attempt.write([], NOTHING)

    with pytest.raises(GivenUpError, match="ranks 1, 2, 3, 4, 5, 6, 7, 8 and more did not write"):
        wait(attempt, timeout_s=0 if not is_given_up else 30, is_given_up=is_given_up)


def test_parts_that_are_there_are_enough_even_if_it_is_given_up(tmp_path: Path) -> None:
    wait(write_all(tmp_path), is_given_up=True)


def test_a_part_that_comes_later_is_waited_for(tmp_path: Path) -> None:
    first, second = make_attempt(tmp_path, 0), make_attempt(tmp_path, 1)
    first.write([], NOTHING)

    class PartComes(threading.Event):
        """Never asks to give up, and has the second part written once it is asked."""

        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            second.write([], NOTHING)
            return False

    first.wait_for_parts(timeout_s=30, give_up=PartComes())

    assert (first.path / "part-00001.safetensors").exists()


def test_an_unfinished_part_does_not_count(tmp_path: Path) -> None:
    attempt = write_all(tmp_path)
    part = attempt.path / "part-00001.safetensors"
    part.rename(part.with_suffix(".unfinished"))

    with pytest.raises(GivenUpError, match="ranks 1 did not write"):
        wait(attempt)


def test_what_another_group_left_is_not_mixed_in(tmp_path: Path) -> None:
    make_attempt(tmp_path, 1, token="earlier").write([], NOTHING)
    attempt = make_attempt(tmp_path, 0, token="later")
    attempt.write([], NOTHING)

    with pytest.raises(GivenUpError, match="ranks 1 did not write"):
        wait(attempt)


@pytest.mark.parametrize("error", [CheckpointError, DivergedError])
def test_the_first_process_learns_what_another_could_not_do(
    tmp_path: Path, error: type[CheckpointError | DivergedError]
) -> None:
    attempt = make_attempt(tmp_path)
    attempt.write([], NOTHING)
    make_attempt(tmp_path, 1).report(error("the volume is full"))

    with pytest.raises(error, match="the volume is full"):
        wait(attempt, timeout_s=30)


def test_a_note_without_content_is_a_failure_too(tmp_path: Path) -> None:
    attempt = make_attempt(tmp_path)
    attempt.write([], NOTHING)
    (attempt.path / "part-00001.failed").touch()

    with pytest.raises(CheckpointError, match="could not write part-00001: it left no reason"):
        wait(attempt, timeout_s=30)


def test_a_full_disk_leaves_a_note_without_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_text", full)
        make_attempt(tmp_path, 1).report(CheckpointError("the volume is full"))

    with pytest.raises(CheckpointError, match="it left no reason"):
        wait(make_attempt(tmp_path), timeout_s=30)


def test_a_report_that_cannot_be_written_is_let_go(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")

    make_attempt(tmp_path / "run", 1).report(CheckpointError("not a directory"))


def test_a_slow_process_finds_that_nobody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_slowly(path: Path, blocks: Sequence[Block], data: memoryview) -> None:
        write_part(path, blocks, data)
        make_attempt(tmp_path).discard()

    monkeypatch.setattr("modelscaling_trainer.checkpoint.attempt.write_part", write_slowly)
    with pytest.raises(GivenUpError, match="did not wait"):
        make_attempt(tmp_path, 1).write([], NOTHING)

    assert names_in(tmp_path) == []


def test_a_directory_that_is_gone_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def write_and_lose(path: Path, blocks: Sequence[Block], data: memoryview) -> None:
        write_part(path, blocks, data)
        run.rename(tmp_path / "elsewhere")

    monkeypatch.setattr("modelscaling_trainer.checkpoint.attempt.write_part", write_and_lose)
    with pytest.raises(FileNotFoundError):
        make_attempt(run, 1).write([], NOTHING)


def test_parts_that_do_not_make_up_a_tensor_are_not_published(tmp_path: Path) -> None:
    save(tmp_path / "other", make_state())
    part = next((tmp_path / "other").glob("step-*/part-00000.safetensors"))
    attempt = write_all(tmp_path)
    for name in ("part-00000.safetensors", "part-00001.safetensors"):
        (attempt.path / name).write_bytes(part.read_bytes())

    with pytest.raises(ValueError, match="its processes disagree on who holds what"):
        attempt.publish(Counters(step=100), TrainedModel(shape=SHAPE), tokenizer="byte")
    assert names_in(tmp_path) == [".writing-step-00000100-3-a", "other"]


def test_of_two_groups_that_publish_a_step_the_first_wins(tmp_path: Path) -> None:
    write_all(tmp_path, token="a").publish(
        Counters(step=100), TrainedModel(shape=SHAPE), tokenizer="byte"
    )
    inode = (tmp_path / "step-00000100").stat().st_ino
    write_all(tmp_path, token="b").publish(
        Counters(step=100), TrainedModel(shape=SHAPE), tokenizer="byte"
    )

    assert names_in(tmp_path) == ["step-00000100"]
    assert inode == (tmp_path / "step-00000100").stat().st_ino


def test_a_torn_checkpoint_of_the_step_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "step-00000100").mkdir()
    (tmp_path / "step-00000100" / "part-00000.safetensors").touch()
    write_all(tmp_path).publish(Counters(step=100), TrainedModel(shape=SHAPE), tokenizer="byte")
    found = find_newest(tmp_path)

    assert found is not None
    assert names_in(tmp_path) == ["step-00000100"]


def test_a_description_is_on_the_disk_before_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = write_all(tmp_path)
    seen: list[list[str]] = []

    def note(path: Path) -> None:
        seen.append(names_in(tmp_path))
        sync_directory(path)

    monkeypatch.setattr("modelscaling_trainer.checkpoint.catalog.sync_directory", note)
    monkeypatch.setattr("modelscaling_trainer.checkpoint.attempt.sync_directory", note)
    attempt.publish(Counters(step=100), TrainedModel(shape=SHAPE), tokenizer="byte")

    assert seen == [[".writing-step-00000100-3-a"], ["step-00000100"]]

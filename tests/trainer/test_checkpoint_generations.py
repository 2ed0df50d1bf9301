"""A group whose place was taken by another neither saves nor publishes."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

import pytest

from modelscaling.growth.trained_model import TrainedModel
from modelscaling_trainer.checkpoint import fence
from modelscaling_trainer.checkpoint.attempt import Attempt
from modelscaling_trainer.errors import GroupLostError
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
    make_shards,
    make_writer,
)

if TYPE_CHECKING:
    from pathlib import Path


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
        until_raised(old, end)
    assert names_in(tmp_path) == ["step-00000050", "step-00000100"]


def test_a_save_of_a_group_whose_place_was_taken_does_not_disturb_the_next_group(
    tmp_path: Path,
) -> None:
    writer = make_writer(tmp_path, generation=3, rank=1, ranks=2)
    fence.claim(tmp_path, 4)
    save(writer, 100, mesh=TWO, rank=1)
    with pytest.raises(GroupLostError, match="generation 3 is over"):
        writer.wait_for_part()

    writer.enter(5)
    writer.settle()


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
    new.begin_group("b", model=TrainedModel(shape=SHAPE), generation=5, rank=0, ranks=1)
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

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from modelscaling_trainer.checkpoint import fence
from modelscaling_trainer.errors import GroupLostError

if TYPE_CHECKING:
    from pathlib import Path


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_nobody_has_claimed_what_is_not_there(tmp_path: Path) -> None:
    assert fence.newest_claim(tmp_path) == 0
    assert fence.newest_claim(tmp_path / "run") == 0


def test_the_newest_claim_is_the_only_one_that_stays(tmp_path: Path) -> None:
    for generation in (2, 9, 10, 10):
        fence.claim(tmp_path / "run", generation)

    assert names_in(tmp_path / "run") == [".generation-10"]
    assert fence.newest_claim(tmp_path / "run") == 10


def test_an_older_group_is_told_who_has_taken_its_place_and_what_to_do(tmp_path: Path) -> None:
    fence.claim(tmp_path, 10)

    for look in (fence.claim, fence.check):
        with pytest.raises(
            GroupLostError,
            match=r"generation 9 is over: generation 10 .* remove \.generation-10 from",
        ):
            look(tmp_path, 9)
    fence.check(tmp_path, 10)
    fence.check(tmp_path, 11)


def test_a_claim_that_was_left_behind_by_a_crash_is_no_harm(tmp_path: Path) -> None:
    (tmp_path / ".generation-3").touch()
    (tmp_path / ".generation-5").touch()

    assert fence.newest_claim(tmp_path) == 5
    fence.claim(tmp_path, 5)
    assert names_in(tmp_path) == [".generation-5"]


@pytest.mark.parametrize("name", [".generation-", ".generation-x", ".generation-3.swp"])
def test_what_is_no_claim_is_let_be(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    fence.claim(tmp_path, 1)

    assert fence.newest_claim(tmp_path) == 1
    assert (tmp_path / name).exists()


def test_whoever_claims_at_the_same_time_the_highest_stays(tmp_path: Path) -> None:
    together = threading.Barrier(8)
    refused: list[int] = []

    def claim(generation: int) -> None:
        together.wait()
        try:
            fence.claim(tmp_path, generation)
        except GroupLostError:
            refused.append(generation)

    threads = [threading.Thread(target=claim, args=[number]) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert fence.newest_claim(tmp_path) == 8
    assert 8 not in refused


def test_only_what_older_groups_have_not_finished_is_removed(tmp_path: Path) -> None:
    kept = [
        ".writing-step-00000100-4-1700000000.5",
        ".writing-step-00000100-5-1700000000.5",
        ".writing-step-00000090-removed-1700000000",
        "step-00000090",
    ]
    for name in [*kept, ".writing-step-00000100-3-1700000000.5", ".writing-step-00000100-1-a"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").touch()

    fence.remove_older_attempts(tmp_path, 4)

    assert names_in(tmp_path) == sorted(kept)

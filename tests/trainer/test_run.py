"""Whole runs in real processes: exactness on every number of processes, and after every fault."""

from __future__ import annotations

import math
import sysconfig
from typing import TYPE_CHECKING

import pytest

from modelscaling.mesh import Mesh
from tests.trainer.runs import make_run
from tests.trainer.workers import Result, Worker, results, train_together

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Start = Callable[..., list[Worker]]

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

AGREEMENT = 1e-5
"""How far losses of the same run on other process counts may lie apart, nats; float32, 3e-4."""


def _train(workers: list[Worker], *, generation: int = 1) -> list[Result]:
    train_together(workers, generation=generation)
    return results(workers)


def test_four_processes_train_as_one_does(text: Path, start_workers: Start) -> None:
    run = make_run(text, training__validate_every_steps=25)

    [alone] = _train(start_workers(1, run))
    together = _train(start_workers(4, run))

    assert [result.outcome for result in together] == ["Complete"] * 4
    assert alone.losses == pytest.approx(together[0].losses, abs=AGREEMENT)
    assert alone.progress[-1].validation_loss == pytest.approx(
        together[0].progress[-1].validation_loss, abs=AGREEMENT
    )
    assert alone.losses[-1] < alone.losses[0] - 0.3
    assert all(alone.digests == result.digests for result in together)
    assert all(together[0].losses == result.losses for result in together)


def test_accumulating_micro_batches_changes_nothing(text: Path, start_workers: Start) -> None:
    [whole] = _train(start_workers(1, make_run(text)))
    [accumulated] = _train(start_workers(1, make_run(text, training__micro_batch_size=2)))

    assert whole.losses == pytest.approx(accumulated.losses, abs=AGREEMENT)
    assert whole.digests == accumulated.digests


def test_bfloat16_learns_real_text(start_workers: Start) -> None:
    standard_library = sysconfig.get_path("stdlib")
    run = make_run(
        f"{standard_library}/json/**/*.py",
        training__precision="BFloat16",
        optimizer__learning_rate=1e-2,
    )
    [result] = _train(start_workers(1, run))

    assert result.outcome == "Complete"
    assert result.losses[0] == pytest.approx(math.log(256), abs=0.2)
    assert result.losses[-1] < 3.5


def test_a_compiled_model_trains_as_the_plain_one(text: Path, start_workers: Start) -> None:
    [plain] = _train(start_workers(1, make_run(text), stop_at_step=3))
    run = make_run(text, training__compile="Always")
    [compiled] = _train(start_workers(1, run, stop_at_step=3))

    assert compiled.outcome == "Complete"
    assert plain.losses == pytest.approx(compiled.losses, abs=AGREEMENT)


def test_another_seed_sees_other_samples(text: Path, start_workers: Start) -> None:
    [first] = _train(start_workers(1, make_run(text), stop_at_step=2))
    [second] = _train(start_workers(1, make_run(text, training__seed=8), stop_at_step=2))

    assert first.digests != second.digests
    assert first.losses != second.losses


def test_a_stopped_run_resumes_bit_for_bit(
    text: Path, tmp_path: Path, start_workers: Start
) -> None:
    run = make_run(text, checkpoint={"every_steps": 1000, "keep": 2})
    undisturbed = _train(start_workers(2, run))[0]

    workers = start_workers(2, run, checkpoint_directory=tmp_path / "run")
    workers[1].ask("Stop", after_step=7)
    before = _train(workers)
    after = _train(start_workers(2, run, checkpoint_directory=tmp_path / "run"))

    assert [result.outcome for result in before] == ["Stopped"] * 2
    assert [result.progress[-1].step for result in before] == [8] * 2
    assert [result.progress[-1].checkpoint_step for result in before] == [8] * 2
    assert after[0].progress[0].step == 9
    assert undisturbed.losses == before[0].losses + after[0].losses
    assert undisturbed.digests == before[0].digests + after[0].digests


def test_a_run_that_starts_again_after_its_end_says_that_it_is_complete(
    text: Path, tmp_path: Path, start_workers: Start
) -> None:
    run = make_run(text, training__total_steps=5, checkpoint={"every_steps": 1000, "keep": 2})
    [first] = _train(start_workers(1, run, checkpoint_directory=tmp_path / "run"))
    [again] = _train(start_workers(1, run, checkpoint_directory=tmp_path / "run"))

    assert again.outcome == "Complete"
    assert [progress.step for progress in again.progress] == [5]
    assert again.digests == first.digests[-1:]


def test_a_group_re_forms_from_memory_without_a_checkpoint_directory(
    text: Path, start_workers: Start
) -> None:
    run = make_run(text, training__total_steps=40)
    [undisturbed] = _train(start_workers(1, run))

    # The newcomer has made its model before there is a group, as it waits.
    workers = start_workers(2, run) + start_workers(1, run, mesh=Mesh(dataReplicate=3))
    workers[0].ask("Reform", after_step=10)
    before = _train(workers[:2])
    # The newcomer is rank 0: the state must come from the ranks that have it.
    after = _train([workers[2], *workers[:2]], generation=2)

    assert [result.outcome for result in before] == ["Stopped"] * 2
    assert [result.outcome for result in after] == ["Complete"] * 3
    assert undisturbed.digests == before[0].digests + after[0].digests
    assert undisturbed.losses == pytest.approx(before[0].losses + after[0].losses, abs=AGREEMENT)


def test_survivors_of_a_killed_process_re_form_and_lose_nothing(
    text: Path, start_workers: Start
) -> None:
    run = make_run(text)
    [undisturbed] = _train(start_workers(1, run))

    survivors = start_workers(2, run)
    train_together(survivors + start_workers(1, run, dies_after_step=10))
    lost = results(survivors)
    after = _train(survivors, generation=2)

    assert [result.error for result in lost] == ["GroupLostError"] * 2
    assert [result.outcome for result in after] == ["Complete"] * 2
    resumed_after = after[0].progress[0].step - 1
    losses = lost[0].losses[:resumed_after] + after[0].losses
    assert undisturbed.losses[-len(losses) :] == pytest.approx(losses, abs=AGREEMENT)
    assert undisturbed.digests[-1] == after[0].digests[-1]


def test_the_process_that_hosts_the_store_may_die_too(text: Path, start_workers: Start) -> None:
    survivors = start_workers(2, make_run(text))
    train_together(start_workers(1, make_run(text), dies_after_step=5) + survivors)
    lost = results(survivors)
    after = _train(survivors, generation=2)

    assert [result.error for result in lost] == ["GroupLostError"] * 2
    assert [result.outcome for result in after] == ["Complete"] * 2


def test_a_checkpoint_on_request_does_not_end_training(
    text: Path, tmp_path: Path, start_workers: Start
) -> None:
    run = make_run(text, checkpoint={"every_steps": 1000, "keep": 3})
    [worker] = start_workers(1, run, checkpoint_directory=tmp_path / "run")
    worker.ask("Checkpoint", after_step=3)
    [result] = _train([worker])

    assert result.outcome == "Complete"
    saved = sorted(path.name for path in (tmp_path / "run").glob("step-*"))
    assert saved == ["step-00000004", "step-00000050"]


def test_only_the_newest_checkpoints_are_kept(
    text: Path, tmp_path: Path, start_workers: Start
) -> None:
    run = make_run(text, checkpoint={"every_steps": 10, "keep": 2})
    [result] = _train(start_workers(1, run, checkpoint_directory=tmp_path / "run"))

    assert result.outcome == "Complete"
    saved = sorted(path.name for path in (tmp_path / "run").glob("*step-*"))
    assert saved == ["step-00000040", "step-00000050"]
    assert result.progress[-1].checkpoint_step == 50


def test_a_torn_checkpoint_costs_no_more_than_the_steps_since_the_one_before(
    text: Path, tmp_path: Path, start_workers: Start
) -> None:
    run = make_run(text, checkpoint={"every_steps": 10, "keep": 5})
    directory = tmp_path / "run"
    [undisturbed] = _train(start_workers(1, run, checkpoint_directory=directory))
    for step in (30, 40):
        _tear(directory / f"step-{step:08d}")
    (directory / "step-00000050" / "checkpoint.json").unlink()
    again = _train(start_workers(2, run, checkpoint_directory=directory))

    assert again[0].progress[0].step == 21
    assert undisturbed.losses[20:] == pytest.approx(again[0].losses, abs=AGREEMENT)
    assert undisturbed.digests[20:] == again[1].digests


def test_a_run_that_is_moved_to_another_volume_saves_there_at_once(
    text: Path, tmp_path: Path, start_workers: Start
) -> None:
    run = make_run(text, training__total_steps=100_000, checkpoint={"every_steps": 1000, "keep": 2})
    [old] = start_workers(1, run, checkpoint_directory=tmp_path / "old")
    [new] = start_workers(1, run, checkpoint_directory=tmp_path / "new")
    train_together([old])
    old.wait_for_step(5)
    old.ask("Reform")
    moved_at = old.result().progress[-1].step
    train_together([new, old], mesh=Mesh(), generation=2)
    new.wait_until(lambda progress: progress.checkpoint_step is not None)
    new.ask("Stop")
    after = new.result()

    assert next(p.checkpoint_step for p in after.progress if p.checkpoint_step) == moved_at
    saved = sorted(path.name for path in (tmp_path / "new").glob("step-*"))
    assert saved == [f"step-{step:08d}" for step in (moved_at, after.progress[-1].step)]
    assert not list((tmp_path / "old").glob("step-*"))


def _tear(checkpoint: Path) -> None:
    file = next(checkpoint.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])


def test_a_damaged_checkpoint_of_the_right_size_is_left_on_all_ranks(
    text: Path, tmp_path: Path, start_workers: Start
) -> None:
    run = make_run(text, checkpoint={"every_steps": 10, "keep": 5})
    directory = tmp_path / "run"
    _train(start_workers(1, run, checkpoint_directory=directory, stop_at_step=20))
    part = directory / "step-00000020" / "part-00000.safetensors"
    part.write_bytes(b"\0" * part.stat().st_size)
    again = _train(start_workers(2, run, checkpoint_directory=directory))

    assert [result.outcome for result in again] == ["Complete"] * 2
    assert again[0].progress[0].step == 11


@pytest.mark.parametrize(
    ("volume", "message"),
    [("empty", "/empty has none that is whole"), (None, "no volume is mounted")],
)
def test_a_run_whose_checkpoints_are_elsewhere_does_not_begin_anew(
    text: Path, tmp_path: Path, start_workers: Start, volume: str | None, message: str
) -> None:
    directory = tmp_path / volume if volume else None
    [worker] = start_workers(1, make_run(text), checkpoint_directory=directory)
    worker.train(rank=0, mesh=Mesh(), port=None, checkpoint_step=5)
    result = worker.result()

    assert result.error == "CheckpointError"
    assert "the run has a checkpoint of step 5" in result.message
    assert message in result.message
    assert result.progress == []


def test_what_one_rank_alone_knows_of_a_checkpoint_keeps_all_from_beginning_anew(
    text: Path, tmp_path: Path, start_workers: Start
) -> None:
    workers = start_workers(2, make_run(text), checkpoint_directory=tmp_path / "empty")
    mesh = Mesh(dataReplicate=2)
    port = workers[0].train(rank=0, mesh=mesh, port=None, checkpoint_step=5)
    workers[1].train(rank=1, mesh=mesh, port=port)

    assert [result.error for result in results(workers)] == ["CheckpointError"] * 2


def test_killed_at_any_moment_of_saving_there_is_always_a_whole_checkpoint(
    text: Path, tmp_path: Path, start_workers: Start
) -> None:
    run = make_run(text, training__total_steps=100_000, checkpoint={"every_steps": 1, "keep": 2})
    directory = tmp_path / "run"
    reached = 0
    for life in range(4):
        [worker] = start_workers(1, run, checkpoint_directory=directory)
        train_together([worker])
        worker.wait_for_step(reached + 5 + life)
        worker.kill()  # with a checkpoint after every step, one is being written now
        [witness] = start_workers(1, run, checkpoint_directory=directory, stop_at_step=1)
        [found] = _train([witness])
        assert found.outcome == "Complete"
        reached = max(int(path.name[5:]) for path in directory.glob("step-*"))
        assert reached >= 3 + life

    [worker] = start_workers(1, run, checkpoint_directory=directory)
    train_together([worker])
    worker.wait_for_step(reached + 1)


def test_a_directory_that_cannot_be_written_ends_the_run_with_its_name(
    text: Path, tmp_path: Path, start_workers: Start
) -> None:
    (tmp_path / "run").write_text("a file where the directory should be")
    run = make_run(text, checkpoint={"every_steps": 1000, "keep": 2})
    both = _train(start_workers(2, run, checkpoint_directory=tmp_path / "run"))

    assert [result.error for result in both] == ["CheckpointError"] * 2
    assert str(tmp_path / "run") in both[1].message


def test_a_volume_that_is_gone_for_a_while_does_not_end_training(
    text: Path, tmp_path: Path, start_workers: Start
) -> None:
    volume, real, broken = (tmp_path / name for name in ("volume", "real", "broken"))
    real.mkdir()
    broken.write_text("a file where the directory should be")
    run = make_run(text, training__total_steps=100_000, checkpoint={"every_steps": 2, "keep": 2})
    _point(volume, real)
    workers = start_workers(2, run, checkpoint_directory=volume)
    train_together(workers)
    workers[0].wait_until(lambda progress: progress.checkpoint_step is not None)
    _point(volume, broken)
    workers[0].wait_until(lambda progress: progress.checkpoint_failure is not None)
    _point(volume, real)
    workers[0].wait_until(lambda progress: progress.checkpoint_failure is None)
    workers[0].ask("Stop")
    both = results(workers)

    assert [result.outcome for result in both] == ["Stopped"] * 2
    reasons = [progress.checkpoint_failure for progress in both[0].progress]
    assert all(str(volume) in reason for reason in reasons if reason is not None)
    last = both[0].progress[-1]
    assert (real / f"step-{last.step:08d}").is_dir()


def _point(link: Path, target: Path) -> None:
    """Have a link lead elsewhere from one moment to the next."""
    new = link.with_name("new-link")
    new.symlink_to(target)
    new.replace(link)


def test_a_group_that_another_has_replaced_unknown_to_it_ends_and_cannot_come_again(
    text: Path, tmp_path: Path, start_workers: Start
) -> None:
    run = make_run(text, training__total_steps=100_000, checkpoint={"every_steps": 2, "keep": 2})
    old, new = (start_workers(2, run, checkpoint_directory=tmp_path / "run") for _ in range(2))
    train_together(old, generation=3)
    old[0].wait_until(lambda progress: progress.checkpoint_step is not None)
    train_together(new, generation=4)
    ended = results(old)
    train_together(old, generation=3, attempt=2)
    again = results(old)
    new[0].ask("Stop")

    assert [result.outcome for result in results(new)] == ["Stopped"] * 2
    assert {result.error for result in ended + again} == {"GroupLostError"}
    # The one that finds it out first says so, and the other that it has lost its peer.
    for both in (ended, again):
        reasons = [result.message for result in both]
        assert any("generation 3 is over: generation 4 saves" in reason for reason in reasons)


def test_a_loss_that_is_not_finite_ends_all_ranks_and_saves_nothing(
    text: Path, tmp_path: Path, start_workers: Start
) -> None:
    run = make_run(
        text,
        optimizer__learning_rate=1e30,
        optimizer__gradient_clip_norm=0.0,
        checkpoint={"every_steps": 1, "keep": 100},
    )
    both = _train(start_workers(2, run, checkpoint_directory=tmp_path / "run"))

    assert [result.error for result in both] == ["DivergedError"] * 2
    assert "learningRate=1e+30" in both[0].message
    assert all(math.isfinite(loss) for loss in both[0].losses)


def test_a_checkpoint_of_a_larger_model_is_refused_by_field(
    text: Path, tmp_path: Path, start_workers: Start
) -> None:
    checkpoint = {"every_steps": 10, "keep": 2}
    small = make_run(text, checkpoint=checkpoint)
    shallow = make_run(text, model__layers=1, checkpoint=checkpoint)
    directory = tmp_path / "run"
    _train(start_workers(1, small, checkpoint_directory=directory, stop_at_step=10))
    [refused] = _train(start_workers(1, shallow, checkpoint_directory=directory))

    assert refused.error == "ConfigurationError"
    assert "layers: 1 is less than the 2 of the trained model" in refused.message


def test_ranks_with_other_settings_are_refused_by_field(text: Path, start_workers: Start) -> None:
    workers = start_workers(1, make_run(text)) + start_workers(1, make_run(text, training__seed=9))
    both = _train(workers)

    assert [result.error for result in both] == ["ConfigurationError"] * 2
    assert "configuration.training.seed is 7 on rank 0 and 9 on rank 1" in both[0].message


def test_ranks_with_other_data_are_refused(text: Path, start_workers: Start) -> None:
    first = start_workers(1, make_run(text))
    first[0].ask("Reform", after_step=1)
    _train(first)
    text.write_text(text.read_text().replace("scale", "scare"))
    both = _train(first + start_workers(1, make_run(text)), generation=2)

    assert [result.error for result in both] == ["ConfigurationError"] * 2
    assert "mount the same files" in both[1].message


def test_a_process_can_leave_a_group_that_never_forms(text: Path, start_workers: Start) -> None:
    [worker] = start_workers(1, make_run(text))
    worker.train(rank=0, mesh=Mesh(dataReplicate=2), port=None)
    worker.ask("Reform")

    assert worker.result().outcome == "Stopped"


def test_a_process_can_leave_a_store_that_is_gone(text: Path, start_workers: Start) -> None:
    [worker] = start_workers(1, make_run(text))
    port = worker.train(rank=0, mesh=Mesh(dataReplicate=2), port=None)
    worker.ask("Reform")
    worker.result()
    worker.train(rank=1, mesh=Mesh(dataReplicate=2), port=port, generation=2)
    worker.ask("Reform")

    assert worker.result().outcome == "Stopped"

"""A run whose model is declared larger goes on from the same step as the larger one: what its
processes hold grows on the way, from memory or from a checkpoint.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from modelscaling.growth.lineage import Ancestor, Lineage
from modelscaling.growth.mode import GrowthMode
from modelscaling.local_growth import LocalGrowth
from modelscaling.mesh import Mesh
from modelscaling_trainer.checkpoint.catalog import find_newest
from modelscaling_trainer.growth.offline import grow
from tests.trainer.runs import make_run
from tests.trainer.workers import Result, Worker, results, train_together

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from modelscaling.configuration import RunConfiguration

    Start = Callable[..., list[Worker]]

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

AGREEMENT = 1e-5
"""How far losses may lie apart, nats; float32, 3e-4, 20 steps."""
GROWN_AT = 8
STEPS = 20
LARGER = {
    "layers": 3,
    "hidden_size": 40,
    "heads": 8,
    "feed_forward_size": 96,
    "vocabulary_size": 260,
}


def _small(text: Path, **changes: Any) -> RunConfiguration:
    return make_run(text, **{"training__total_steps": GROWN_AT} | changes)


def _large(text: Path, **changes: Any) -> RunConfiguration:
    model = {f"model__{name}": value for name, value in LARGER.items()}
    return make_run(text, **{"training__total_steps": STEPS} | model | changes)


@pytest.fixture
def offline(text: Path, tmp_path: Path, start_workers: Start) -> Result:
    """Train alone, grow the checkpoint offline and train on."""
    saved = {"every_steps": 1000, "keep": 2}
    small, grown = tmp_path / "offline-small", tmp_path / "offline-grown"
    workers = start_workers(1, _small(text, checkpoint=saved), checkpoint_directory=small)
    train_together(workers)
    results(workers)
    shape = {
        "layers": 3,
        "hiddenSize": 40,
        "heads": 8,
        "feedForwardSize": 96,
        "vocabularySize": 260,
    }
    grow(
        LocalGrowth(
            source=small,
            target=grown,
            shape=shape,
            mode=GrowthMode.PRESERVE,
            seed=7,
            noise=0.0,
            check=None,
            tokenizer=None,
            is_json=False,
        )
    )
    workers = start_workers(1, _large(text, checkpoint=saved), checkpoint_directory=grown)
    train_together(workers)
    [result] = results(workers)
    return result


def _check(result: Result, offline: Result, *, source: str) -> None:
    """Hold a run that grew against one that was grown offline."""
    assert [progress.step for progress in result.progress] == [*range(GROWN_AT + 1, STEPS + 1)]
    assert offline.losses == pytest.approx(result.losses, abs=AGREEMENT)
    assert offline.digests == result.digests
    resumption = result.progress[0].resumption
    assert resumption is not None
    assert (resumption.source, resumption.step) == (source, GROWN_AT)
    assert resumption.furthest_step == GROWN_AT


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(Mesh(dataReplicate=2), Mesh(dataReplicate=2), id="dp2"),
        pytest.param(Mesh(dataShard=2), Mesh(dataShard=2, tensor=2), id="fsdp2 to fsdp2 x tp2"),
        pytest.param(Mesh(tensor=2), Mesh(dataShard=3), id="tp2 to fsdp3"),
        pytest.param(Mesh(pipeline=2), Mesh(), id="pp2 to a single process, and a stage leaves"),
    ],
)
def test_a_model_grows_in_memory_onto_another_mesh(
    before: Mesh, after: Mesh, text: Path, offline: Result, start_workers: Start
) -> None:
    workers = start_workers(max(before.size, after.size), _small(text))
    train_together(workers[: before.size], mesh=before)
    results(workers[: before.size])
    for worker in workers:
        worker.reconfigure(_large(text))
    train_together(workers[::-1], mesh=after, generation=2)
    second = results(workers[::-1])

    assert [result.outcome for result in second] == ["Complete"] * after.size + ["Released"] * (
        before.size - after.size
    )
    _check(second[0], offline, source="Memory")


def test_the_validation_loss_before_and_after_growth_is_told(
    text: Path, start_workers: Start
) -> None:
    workers = start_workers(2, make_run(text, training__total_steps=1000))
    workers[1].ask("Grow", after_step=GROWN_AT)
    train_together(workers)
    [before, _] = results(workers)
    grown = _large(text, training__total_steps=before.progress[-1].step + 2)
    for worker in workers:
        worker.reconfigure(grown)
    train_together(workers, generation=2)
    [after, _] = results(workers)

    assert (before.outcome, after.outcome) == ("Stopped", "Complete")
    assert before.validation_losses[:-1] == [None] * (len(before.progress) - 1)
    resumption = after.progress[0].resumption
    assert resumption is not None
    assert before.validation_losses[-1] == resumption.loss_before
    assert resumption.loss_before is not None
    assert resumption.loss_after is not None
    # Four more tokens take a part of the probability.
    rise = resumption.loss_after - resumption.loss_before
    assert 0 < rise < math.log(260 / 256) + 1e-5
    # The larger model has no validation of its own yet.
    assert {progress.validation_loss for progress in after.progress} == {None}


def test_a_model_grows_from_a_checkpoint_of_another_mesh(
    text: Path, tmp_path: Path, offline: Result, start_workers: Start
) -> None:
    saved = {"every_steps": 1000, "keep": 2}
    directory = tmp_path / "run"
    first = start_workers(2, _small(text, checkpoint=saved), checkpoint_directory=directory)
    train_together(first, mesh=Mesh(tensor=2))
    results(first)
    second = start_workers(3, _large(text, checkpoint=saved), checkpoint_directory=directory)
    train_together(second, mesh=Mesh(dataShard=3))
    [result, *_] = results(second)

    _check(result, offline, source="Checkpoint")


def test_a_grown_run_goes_on_from_its_own_checkpoint_bit_by_bit(
    text: Path, tmp_path: Path, start_workers: Start
) -> None:
    saved = {"every_steps": 14, "keep": 3}
    directory, copied = tmp_path / "run", tmp_path / "copied"
    small, large = _small(text, checkpoint=saved), _large(text, checkpoint=saved)
    [worker] = start_workers(1, small, checkpoint_directory=directory)
    train_together([worker])
    results([worker])
    worker.reconfigure(large)
    train_together([worker], generation=2)
    [undisturbed] = results([worker])
    shutil.copytree(directory / "step-00000014", copied / "step-00000014")
    again = start_workers(1, large, checkpoint_directory=copied)
    train_together(again)
    [resumed] = results(again)

    found = find_newest(directory)
    assert found is not None
    assert found.lineage == Lineage(
        (Ancestor(shape=small.model, step=GROWN_AT, mode=GrowthMode.PRESERVE),)
    )
    # Padding divides the epsilon of the norms, which nobody declares.
    epsilon = small.model.norm_epsilon * 32 / 40
    assert found.trained.shape == replace(large.model, norm_epsilon=epsilon)
    assert len(resumed.losses) == STEPS - 14
    assert undisturbed.losses[-len(resumed.losses) :] == resumed.losses


def test_the_rate_rises_on_in_the_groups_after_that_which_grew_and_from_its_checkpoint(
    text: Path, tmp_path: Path, start_workers: Start
) -> None:
    long = {"training__total_steps": 1000, "checkpoint": {"every_steps": 1000, "keep": 2}}
    small = _small(text, checkpoint=long["checkpoint"])
    large = _large(text, optimizer__rewarmup_steps=100, **long)
    directory = {"checkpoint_directory": tmp_path / "run"}

    def grow_in(worker: Worker, configuration: RunConfiguration) -> None:
        train_together([worker])
        results([worker])
        worker.reconfigure(configuration)
        train_together([worker], generation=2)

    [worker] = start_workers(1, small, **directory)
    worker.ask("Reform", after_step=GROWN_AT + 4)
    grow_in(worker, large)
    [grown] = results([worker])
    worker.ask("Stop", after_step=grown.progress[-1].step + 2)
    train_together([worker], generation=3)
    [reformed] = results([worker])
    last = reformed.progress[-1].step + 6
    again = start_workers(2, large, stop_at_step=last, **directory)
    train_together(again, mesh=Mesh(tensor=2), generation=4)
    [resumed, _] = results(again)
    undisturbed, at_once = start_workers(2, small, stop_at_step=last)
    grow_in(undisturbed, large)
    grow_in(at_once, _large(text, **long))
    expected, [unslowed] = undisturbed.result().losses, results([at_once])

    assert [grown.outcome, reformed.outcome, resumed.outcome] == ["Stopped", "Stopped", "Complete"]
    in_memory = grown.losses + reformed.losses
    assert in_memory == expected[: len(in_memory)]
    assert resumed.losses == pytest.approx(expected[len(in_memory) :], abs=AGREEMENT)
    assert len(resumed.losses) == 6
    assert unslowed.losses[0] == expected[0]
    assert unslowed.losses[-1] < expected[-1] - 1e-3


def test_a_model_that_would_shrink_is_refused_and_the_run_can_go_on_as_it_was(
    text: Path, start_workers: Start
) -> None:
    [worker] = start_workers(1, _large(text, training__total_steps=GROWN_AT))
    train_together([worker])
    results([worker])
    worker.reconfigure(_small(text, training__total_steps=STEPS))
    train_together([worker], generation=2)
    [refused] = results([worker])
    worker.reconfigure(_large(text))
    train_together([worker], generation=3)
    [after] = results([worker])

    assert refused.error == "ConfigurationError"
    assert "layers: 2 is less than the 3 of the trained model" in refused.message
    assert after.outcome == "Complete"
    assert after.progress[0].step == GROWN_AT + 1


def test_growth_is_refused_where_it_is_forbidden(text: Path, start_workers: Start) -> None:
    [worker] = start_workers(1, _small(text))
    train_together([worker])
    results([worker])
    worker.reconfigure(_large(text, growth=None))
    train_together([worker], generation=2)
    [refused] = results([worker])

    assert refused.error == "ConfigurationError"
    assert "growth.mode is Forbid" in refused.message


LEARNED_AT = 40
"""Steps after which a model has learned something that stacking it disturbs, with this rate."""
LEARNING = {"training__total_steps": 1000, "optimizer__learning_rate": 3e-3}
MORE = 6
"""Steps after growth, or after it was taken back."""
SAVED = {"every_steps": 1000, "keep": 1}


def _long(text: Path, **changes: Any) -> RunConfiguration:
    return make_run(text, **LEARNING | changes)


def _stacked(text: Path, **changes: Any) -> RunConfiguration:
    """Two layers that are put on themselves: the loss jumps."""
    stacked = {"model__layers": 4, "growth": "Stack", "growth_tolerance": 1e-3}
    return _long(text, **stacked | changes)


def _train_to(workers: list[Worker], step: int, *, request: str = "Stop", **group: Any) -> Result:
    """Train to the step after a step."""
    workers[0].ask(request, after_step=step)
    train_together(workers, **group)
    [result, *_] = results(workers)
    assert (result.outcome, result.progress[-1].step) == ("Stopped", step + 1)
    return result


def _end_for_growth(workers: list[Worker], *, mesh: Mesh) -> int:
    """Train and end as before growth; return the step."""
    return _train_to(workers, LEARNED_AT, request="Grow", mesh=mesh).progress[-1].step


def _reconfigure(workers: list[Worker], configuration: RunConfiguration) -> None:
    for worker in workers:
        worker.reconfigure(configuration)


@pytest.mark.parametrize(
    ("before", "after", "source"),
    [
        pytest.param(Mesh(dataReplicate=2), Mesh(dataReplicate=2), "Memory", id="dp2"),
        pytest.param(Mesh(dataShard=2), Mesh(tensor=2), "Memory", id="fsdp2 to tp2"),
        pytest.param(
            Mesh(pipeline=2), Mesh(), "Checkpoint", id="pp2 to one process, and a stage leaves"
        ),
    ],
)
def test_growth_that_raises_the_loss_too_much_is_taken_back(
    before: Mesh, after: Mesh, source: str, *, text: Path, tmp_path: Path, start_workers: Start
) -> None:
    saved: dict[str, Any] = {"checkpoint": SAVED} if source == "Checkpoint" else {}
    directory = {"checkpoint_directory": tmp_path / "run"} if saved else {}
    workers = start_workers(2, _long(text, **saved), **directory)
    step = _end_for_growth(workers, mesh=before)
    _reconfigure(workers, _stacked(text, **saved))
    train_together(workers, mesh=after, generation=2)
    [rejected, *_] = results(workers)
    staying = workers[: after.size]
    _reconfigure(staying, _long(text, **saved))
    third = _train_to(staying, step + MORE, mesh=after, generation=3)
    undisturbed = _train_to(start_workers(1, _long(text)), step + MORE, mesh=Mesh())

    assert rejected.error == "GrowthRejectedError"
    assert "and 0.0010 more is allowed" in rejected.message
    assert rejected.progress == []
    steps = [progress.step for progress in third.progress[:MORE]]
    assert steps == [*range(step + 1, step + MORE + 1)]
    after_it = slice(step, step + MORE)
    losses = undisturbed.losses[after_it]
    assert third.losses[:MORE] == pytest.approx(losses, abs=10 * AGREEMENT)
    assert third.digests[:MORE] == undisturbed.digests[after_it]
    resumption = third.progress[0].resumption
    assert resumption is not None
    assert (resumption.source, resumption.step) == (source, step)
    assert resumption.furthest_step == step


def test_growth_that_nobody_can_take_back_stays(text: Path, start_workers: Start) -> None:
    workers = start_workers(2, _long(text))
    step = _end_for_growth(workers, mesh=Mesh(pipeline=2))
    _reconfigure(workers, _stacked(text, training__total_steps=step + MORE))
    train_together(workers, mesh=Mesh(), generation=2)
    [result, left] = results(workers)

    assert (result.outcome, left.outcome) == ("Complete", "Released")
    resumption = result.progress[0].resumption
    assert resumption is not None
    assert resumption.loss_before is not None
    assert resumption.loss_after is not None
    assert resumption.loss_after > resumption.loss_before + 1e-3


def test_growth_that_preserves_the_model_stays(text: Path, start_workers: Start) -> None:
    workers = start_workers(2, _long(text))
    step = _end_for_growth(workers, mesh=Mesh(dataReplicate=2))
    # The four tokens more cost a hundred times that, which they may.
    changes = LEARNING | {"growth_tolerance": 1e-4, "training__total_steps": step + MORE}
    _reconfigure(workers, _large(text, **changes))
    train_together(workers, generation=2)
    [result, _] = results(workers)

    assert result.outcome == "Complete"
    assert result.progress[0].step == step + 1


def test_a_group_that_meets_again_before_its_first_step_judges_its_growth_again(
    text: Path, start_workers: Start
) -> None:
    workers = start_workers(2, _long(text))
    _end_for_growth(workers, mesh=Mesh(dataShard=2))
    _reconfigure(workers, _stacked(text))
    train_together(workers, generation=2)
    first = results(workers)
    train_together(workers, generation=2, attempt=2)
    second = results(workers)

    assert {result.error for result in (*first, *second)} == {"GrowthRejectedError"}
    assert {result.message for result in (*first, *second)} == {first[0].message}

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.status import BestCheckpointStatus, ConditionStatus, RunState
from modelscaling.exit_code import ExitCode
from modelscaling.validation_history import Validation
from modelscaling_operator.announcement import announcements
from tests.operator.runs import condition, make_world, state, trained_world
from tests.operator.world import World, make_progress
from tests.shared.validations import OVERFITTING, make_history

if TYPE_CHECKING:
    from modelscaling.protocol import Progress

STOPPING = {"training__earlyStopping": {"patience": 3}}
BEST = OVERFITTING.best


def report(world: World, step: int = 50, **changes: Any) -> Progress:
    """Have the first rank say this, and the operator hear it."""
    progress = make_progress(step, **changes)
    world.agent(0).progress = progress
    look(world)
    return progress


def look(world: World) -> None:
    world.take_status(world.decide().status)


def advice(world: World) -> dict[str, str]:
    return {one.type: one.reason for one in world.status.advice}


def stop_early(world: World, **changes: Any) -> None:
    """End a run as its trainers do that stop early."""
    report(world, is_stopped_early=True, validations=OVERFITTING, **changes)
    for pod in world.live_pods():
        world.end(pod, ExitCode.DONE)
    world.run_until_quiet()


def test_the_balance_is_told_before_the_first_step() -> None:
    world = make_world()
    world.tick()

    assert world.status.progress is None
    assert advice(world) == {"Balance": "UnderTrained"}


def test_repetition_is_told_once_the_size_of_the_data_is_known_and_stays() -> None:
    world = trained_world()
    report(world, epoch_tokens=512 * 12)
    assert advice(world) == {"Balance": "UnderTrained", "Repetition": "MuchRepetition"}
    assert world.status.progress is not None
    assert world.status.progress.epochs == "4.17"

    world.edit(replicas=2, suspend=True)
    for pod in world.live_pods():
        world.end(pod, ExitCode.INTERRUPTED)
    world.pods.clear()
    look(world)

    assert advice(world) == {"Balance": "UnderTrained", "Repetition": "MuchRepetition"}


def test_the_gap_of_the_losses_is_told_and_stays_while_nobody_reports() -> None:
    world = trained_world()
    report(world, epoch_tokens=512 * 12, validations=OVERFITTING)
    assert advice(world)["Generalisation"] == "LargeGap"

    world.agent(0).progress = None
    look(world)

    assert advice(world)["Generalisation"] == "LargeGap"


def test_advice_does_not_change_from_step_to_step() -> None:
    world = trained_world()
    report(world, 50, epoch_tokens=512 * 12, validations=OVERFITTING)
    before = world.status.advice
    report(world, 51, epoch_tokens=512 * 12, validations=OVERFITTING)

    assert len(before) == 3
    assert world.status.advice == before


def test_a_run_whose_validation_loss_falls_does_not_overfit() -> None:
    world = trained_world()
    report(world, validations=make_history([3.0, 2.5, 2.0, 1.8]))

    overfitting = condition(world, ConditionType.OVERFITTING)
    assert (overfitting.status, overfitting.reason) == (
        ConditionStatus.FALSE,
        Reason.NOT_OVERFITTING,
    )


def test_overfitting_is_told_with_the_best_step_until_it_is_better_again() -> None:
    world = trained_world()
    report(world, validations=OVERFITTING)

    overfitting = condition(world, ConditionType.OVERFITTING)
    assert overfitting.status is ConditionStatus.TRUE
    assert overfitting.message.startswith("The validation loss was best at step 20 with 2.0000")
    assert state(world) is RunState.RUNNING

    better = OVERFITTING.after(Validation(step=70, loss=1.9, training_loss=0.9))
    report(world, validations=better)

    assert condition(world, ConditionType.OVERFITTING).status is ConditionStatus.FALSE


def test_overfitting_stays_while_nobody_reports() -> None:
    world = trained_world()
    report(world, validations=OVERFITTING)
    before = condition(world, ConditionType.OVERFITTING)
    world.agent(0).progress = None
    look(world)

    assert condition(world, ConditionType.OVERFITTING) == before


def test_overfitting_is_an_event_once_and_its_absence_at_the_beginning_is_none() -> None:
    world = trained_world()
    before = world.status
    report(world, validations=OVERFITTING)
    overfits = world.status
    report(world, 51, validations=OVERFITTING)

    fresh = before.model_copy(update={"conditions": ()})
    assert Reason.NOT_OVERFITTING not in [one.reason for one in announcements(fresh, before)]
    (told,) = announcements(before, overfits)
    assert (told.warning, told.reason) == (True, Reason.VALIDATION_LOSS_ROSE)
    assert list(announcements(overfits, world.status)) == []


def test_a_run_that_stops_early_is_complete_and_names_its_best_checkpoint() -> None:
    world = trained_world(**STOPPING)
    stop_early(world, best_checkpoint=BEST)

    assert state(world) is RunState.COMPLETE
    complete = condition(world, ConditionType.COMPLETE)
    assert complete.reason == Reason.EARLY_STOPPED
    assert complete.message == (
        "Stopped at step 50 of 125, as the validation loss has not improved since step 20, where "
        "it was 2.0000; the checkpoint of step 20, with 2.0000, is kept."
    )
    assert world.status.best_checkpoint == BestCheckpointStatus(step=20, validation_loss="2.0000")
    assert world.status.progress is not None
    assert world.status.progress.early_stop_step == 50
    assert world.status.progress.estimated_completion_time is None
    assert world.births == 2


def test_a_run_that_stops_early_says_so_where_its_best_checkpoint_is_not_there() -> None:
    world = trained_world(**STOPPING)
    stop_early(world)

    assert "; its checkpoint could not be kept." in condition(world, ConditionType.COMPLETE).message
    assert world.status.best_checkpoint is None


def test_a_peer_that_falls_silent_after_an_early_stop_is_no_loss() -> None:
    world = trained_world(**STOPPING)
    report(world, is_stopped_early=True, validations=OVERFITTING, best_checkpoint=BEST)
    generation = world.generation
    world.end(world.pods["tiny-0"], ExitCode.DONE)
    world.cut_off(1)
    for _ in range(3):
        look(world)
    world.end(world.pods["tiny-1"], ExitCode.DONE)
    world.run_until_quiet()

    assert state(world) is RunState.COMPLETE
    assert world.generation == generation
    assert world.status.restarts.count == 0
    assert world.births == 2


def test_the_best_checkpoint_is_known_while_nobody_reports_and_not_without_early_stopping() -> None:
    world = trained_world(**STOPPING)
    report(world, validations=OVERFITTING, best_checkpoint=BEST)
    world.agent(0).progress = None
    look(world)
    assert world.status.best_checkpoint is not None

    world.edit(replicas=2, checkpoint={"volume": {"emptyDir": {}}})
    look(world)

    assert world.status.best_checkpoint is None

"""The end of a run: when it is complete or given up, and what is left to do after it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.protocol import StopMode
from modelscaling_operator.action import NOTHING_TO_SAVE_S, Action, DeletePod, DeleteRun
from modelscaling_operator.draft import EVENTS_S, IDLE_S, Decision, Draft
from modelscaling_operator.failure import MOST_AT_ONE_STEP, Verdict
from modelscaling_operator.winding import wind_down
from modelscaling_operator.wish import Rejection, Wish

if TYPE_CHECKING:
    from modelscaling.api.modelscaling import ModelScalingSpec
    from modelscaling.api.status import ModelScalingStatus
    from modelscaling_operator.observation import Observation, Pod

LAST_RANKS_S = 60
"""Seconds that the other pods have to end, once the first rank has done the last step."""


def find_finisher(seen: Observation) -> Pod | None:
    """Return the pod of the rank that has done and reported the last step."""
    for pod in seen.own:
        report = pod.exit.report if pod.exit and pod.exit.code == 0 else None
        progress = report.progress if report else None
        if progress is not None and progress.is_last:
            return pod
    return None


def await_last_ranks(draft: Draft, finisher: Pod) -> Decision:
    """Wait for the ends of the other pods of its group for a while, then call the run complete."""
    finished = (finisher.exit.finished if finisher.exit else None) or draft.now
    waited = draft.now > finished + timedelta(seconds=LAST_RANKS_S)
    told = [pod for pod in (*draft.seen.members, *draft.seen.leavers) if pod]
    if not waited and any(not pod.ended for pod in told):
        return draft.finish(map(_delete, _outsiders(draft.seen)), requeue_s=1)
    return end_run(draft, ConditionType.COMPLETE, _why_complete(draft.status))


def _why_complete(status: ModelScalingStatus) -> Verdict:
    progress = status.progress
    if progress is None or progress.early_stop_step is None:
        steps = progress.step if progress else 0
        return Verdict(reason=Reason.COMPLETE, message=f"All {steps} steps are done.")
    best = status.best_checkpoint
    kept = (
        f"the checkpoint of step {best.step}, with {best.validation_loss}, is kept"
        if best is not None
        else "its checkpoint could not be kept"
    )
    return Verdict(
        reason=Reason.EARLY_STOPPED,
        message=(
            f"Stopped at step {progress.step} of {progress.total_steps}, as the validation loss "
            f"has not improved since step {progress.best_step}, where it was "
            f"{progress.best_validation_loss}; {kept}."
        ),
    )


def given_up(wish: Wish | Rejection, draft: Draft) -> Verdict | None:
    """Return why the spec's own limits end the run."""
    if isinstance(wish, Rejection):
        return None
    restarts = draft.status.restarts
    if restarts.count > wish.spec.max_restarts:
        return Verdict(
            reason=Reason.MAX_RESTARTS_EXCEEDED,
            message=(
                f"{restarts.count} failures are more than spec.maxRestarts="
                f"{wish.spec.max_restarts} allows; the last one: {restarts.message}"
            ),
        )
    if restarts.consecutive >= MOST_AT_ONE_STEP:
        return Verdict(
            reason=Reason.FAILS_AT_SAME_STEP,
            message=(
                f"{restarts.consecutive} attempts failed without a step in between, after step "
                f"{restarts.step}; the last one: {restarts.message}"
            ),
        )
    deadline = deadline_of(wish.spec, draft.status)
    if deadline is not None and draft.now >= deadline:
        return Verdict(
            reason=Reason.DEADLINE_EXCEEDED,
            message=(
                f"The run has taken longer than spec.activeDeadlineSeconds="
                f"{wish.spec.active_deadline_seconds}."
            ),
        )
    return None


def deadline_of(spec: ModelScalingSpec, status: ModelScalingStatus) -> datetime | None:
    """Return when the run is to be stopped as failed; None where it may take as long as it does."""
    if spec.active_deadline_seconds is None or status.start_time is None:
        return None
    return status.start_time + timedelta(seconds=spec.active_deadline_seconds)


def end_run(draft: Draft, kind: ConditionType, verdict: Verdict) -> Decision:
    """Call the run complete or failed, for good."""
    word = Reason.COMPLETE if kind is ConditionType.COMPLETE else Reason.FAILED
    draft = (
        draft.update(completion_time=draft.now.replace(microsecond=0))
        .condition(kind, holds=True, reason=verdict.reason, message=verdict.message)
        .not_running(word, verdict.message)
    )
    return draft.finish(_end_pods(draft), requeue_s=1)


def keep_after_end(draft: Draft, wish: Wish | Rejection) -> Decision:
    """Keep ended pods for their logs until the time to live is over."""
    actions = _end_pods(draft)
    ended = draft.status.completion_time
    assert ended is not None
    requeue_s = EVENTS_S if actions else IDLE_S
    ttl_s = wish.spec.ttl_seconds_after_finished if isinstance(wish, Wish) else None
    if ttl_s is not None:
        left_s = (ended + timedelta(seconds=ttl_s) - draft.now).total_seconds()
        if left_s <= 0:
            return draft.finish([DeleteRun()])
        requeue_s = min(requeue_s, left_s)
    return draft.finish(actions, requeue_s=requeue_s)


def _end_pods(draft: Draft) -> list[Action]:
    since = draft.status.completion_time or draft.now
    outsiders = {pod.uid: pod for pod in _outsiders(draft.seen)}
    return [
        *map(_delete, outsiders.values()),
        *wind_down(
            draft.seen,
            [pod for pod in draft.seen.own if pod.uid not in outsiders],
            mode=StopMode.SUSPEND,
            keep_ended=True,
            since=since,
            now=draft.now,
        ),
    ]


def _outsiders(seen: Observation) -> list[Pod]:
    """Return the live pods beside the group, spares and newcomers, which have nothing to save."""
    if seen.status.group is None:
        return []
    return [pod for pod in seen.outsiders if not pod.ended and pod.deletion_deadline is None]


def _delete(outsider: Pod) -> DeletePod:
    return DeletePod(pod=outsider, grace_s=NOTHING_TO_SAVE_S)

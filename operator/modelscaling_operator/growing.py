"""What another model than that of the group does to a run that has trained, be `spec.model` changed
or an entry of its growth.schedule reached: it grows, or keeps the model that it has, with the
reason in the condition Accepted.

What the group was told to train is in the status, so that it is known whatever the spec says now.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from modelscaling.api.conditions import Reason
from modelscaling.api.group_status import RejectedGrowthStatus
from modelscaling.api.validation import InvalidSpecError
from modelscaling.configuration import Message
from modelscaling.growth.mode import GrowthMode
from modelscaling.growth.plan import UnreachableShapeError
from modelscaling.growth.stages import NOTHING_TRAINED, Trained
from modelscaling.growth.trained_model import plan_change
from modelscaling.shape import ModelShape
from modelscaling_operator.progress import decimal
from modelscaling_operator.wish import Rejection, Wish

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelscaling.api.group_status import GroupStatus
    from modelscaling.api.status import ModelScalingStatus
    from modelscaling.configuration import RunConfiguration
    from modelscaling.protocol import GrowthRejection
    from modelscaling_operator.observation import Observation


class _Told(Message):
    """The model that a group was told to train."""

    model: ModelShape
    growth: GrowthMode | None
    tolerance: float | None = None


def describe_model(configuration: RunConfiguration) -> str:
    """Return the model of a run as a group's status carries it."""
    return _describe(configuration).model_dump_json()


def note_rejection(seen: Observation) -> Observation:
    """Return what is seen, with what a member says of its group's growth in the status: that it was
    taken back, and what the run goes back to. It is written with the decision that heeds it.
    """
    group = seen.status.group
    rejection = next(_rejections(seen), None)
    if group is None or rejection is None:
        return seen
    tried = _Told.model_validate_json(group.model)
    noted = {
        "group": group.model_copy(update={"broken": Reason.GROWTH_REJECTED.value}),
        "rejected_growth": RejectedGrowthStatus(
            model=group.model,
            kept=tried.model_copy(update={"model": rejection.model}).model_dump_json(),
            loss_before=f"{rejection.loss_before:.4f}",
            loss_after=decimal(rejection.loss_after, 4),
            allowed_rise=f"{rejection.allowed_rise:.4f}",
        ),
    }
    return replace(seen, status=seen.status.model_copy(update=noted))


def trained_so_far(status: ModelScalingStatus) -> Trained:
    """Return what decides at which stage of growth.schedule a run is: all of it is in the status,
    so that a look that was missed, or another operator, comes to the same.
    """
    group, progress = status.group, status.progress
    if progress is None or not _has_steps(status):
        return NOTHING_TRAINED
    told = _Told.model_validate_json(group.model).model if group and group.model else None
    return Trained(tokens=progress.tokens, model=told)


def keep_or_grow(wish: Wish | Rejection, status: ModelScalingStatus) -> Wish | Rejection:
    """Return the wish with the model that the run is to train now: the declared one, or where that
    cannot be had the one of its present group.
    """
    group = status.group
    if isinstance(wish, Rejection) or group is None or not group.model or not _has_steps(status):
        return wish
    rejected = status.rejected_growth
    is_rejected = rejected is not None and rejected.model == group.model
    told = _Told.model_validate_json(rejected.kept if rejected and is_rejected else group.model)
    declared = wish.configuration
    if declared.model == told.model:
        # How it may grow is of no matter until it does; nothing is re-formed for that.
        return wish.with_growth(told.growth, told.tolerance)
    refusal = _rejection(rejected, declared) or _refusal(told, declared, group)
    if refusal is None:
        return wish
    try:
        return wish.keeping(told.model, refusal).with_growth(told.growth, told.tolerance)
    except InvalidSpecError as error:
        return Rejection(reason=Reason.INVALID_SPEC, message=f"{refusal.message} {error}")


def _has_steps(status: ModelScalingStatus) -> bool:
    return status.progress is not None and status.progress.step > 0


def _describe(configuration: RunConfiguration) -> _Told:
    return _Told(
        model=configuration.model,
        growth=configuration.growth,
        tolerance=configuration.growth_tolerance,
    )


def _rejections(seen: Observation) -> Iterator[GrowthRejection]:
    """Yield what members of the present group say of its growth."""
    group = seen.status.group
    for pod in seen.members:
        agent = seen.agent(pod) if pod else None
        if agent and agent.growth_rejection and group and agent.generation == group.generation:
            yield agent.growth_rejection


def _rejection(
    rejected: RejectedGrowthStatus | None, declared: RunConfiguration
) -> Rejection | None:
    """Return why the declared model is not tried again, if it was tried as it is declared."""
    if rejected is None or _Told.model_validate_json(rejected.model) != _describe(declared):
        return None
    return Rejection(
        reason=Reason.GROWTH_REJECTED,
        message=(
            f"spec.model: growth took the validation loss from {rejected.loss_before} to "
            f"{rejected.loss_after or 'no number'} nats a token, and {rejected.allowed_rise} more "
            f"is allowed. The run went back to the model before and trains on; declare another "
            f"one, or raise spec.model.growth.tolerance."
        ),
    )


def _refusal(told: _Told, declared: RunConfiguration, group: GroupStatus) -> Rejection | None:
    if not group.trained and group.stopped_mesh is not None:
        return Rejection(
            reason=Reason.GROWTH_WAITS,
            message=(
                f"The model is to grow while the group changes from {group.stopped_mesh} to "
                f"{group.mesh}; it grows once that group trains."
            ),
        )
    try:
        plan_change(told.model, declared.model, declared.growth)
    except UnreachableShapeError as error:
        problems = "; ".join(f"spec.model.{obstacle}" for obstacle in error.obstacles)
        return Rejection(
            reason=Reason.GROWTH_REFUSED,
            message=f"{problems}. The run trains on as it was.",
        )
    return None

"""The run whose checkpoints another one begins with (`spec.model.initFrom.modelScaling`).

It is awaited until it does not go on by itself: it is over, or suspended. Then it is remembered by
its UID in the status: from then on it may be deleted, as its checkpoints stay on the volume.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelscaling.api.conditions import ConditionType, Reason
from modelscaling.api.status import ConditionStatus, InitFromStatus
from modelscaling_operator.draft import EVENTS_S
from modelscaling_operator.kube import RUNS, NotFoundError
from modelscaling_operator.observation import SourceRun, parse_status
from modelscaling_operator.wish import Rejection, Wish

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelscaling.api.status import ModelScalingStatus
    from modelscaling_operator.draft import Decision, Draft
    from modelscaling_operator.identity import RunIdentity
    from modelscaling_operator.kube import Kube
    from modelscaling_operator.observation import Observation

Json = dict[str, Any]

_MOST_IN_LINE = 32
"""How many runs that wait for each other are followed; a longer line shortens by itself."""


def awaited_source(wish: Wish | Rejection, status: ModelScalingStatus) -> str | None:
    """Return the name of the run that is to be looked at; None where there is none, or it is known
    already.
    """
    if isinstance(wish, Wish) and status.init_from is None and status.completion_time is None:
        return _source_name(wish)
    return None


async def find_source(kube: Kube, run: RunIdentity, name: str) -> SourceRun:
    """Look at the run that `run` is to begin with, and at those that it waits for itself.

    Raises:
        KubeError: the API server does not tell.
    """
    body = await _get(kube, run, name)
    if body is None:
        return SourceRun(name=name)
    awaits: list[str] = []
    following: Json | None = body
    while following is not None and len(awaits) < _MOST_IN_LINE:
        awaited = _awaits(following)
        if awaited is None or awaited in awaits:
            break
        awaits.append(awaited)
        following = None if awaited == run.name else await _get(kube, run, awaited)
    return SourceRun(
        name=name,
        uid=body["metadata"]["uid"],
        volume=(body["spec"].get("checkpoint") or {}).get("volume"),
        status=parse_status(body.get("status")),
        awaits=tuple(awaits),
    )


def refuse_source(wish: Wish, seen: Observation) -> Rejection | None:
    """Return why a run can never begin with the one that it names, as long as all stay as they are;
    None where nothing is wrong with it.
    """
    source = seen.source
    if source is None or source.uid is None:
        return None
    line = [seen.run.name, source.name, *source.awaits]
    if seen.run.name in line[1:]:
        line = line[: line.index(seen.run.name, 1) + 1]
        return _refused(
            f"{' waits for '.join(line)}, so that none of them can begin; delete one and create it "
            f"anew without model.initFrom"
        )
    assert wish.spec.checkpoint is not None  # CEL has made sure of it
    volume = wish.spec.checkpoint.volume
    if source.volume != volume:
        return _refused(
            f"{source.name} saves to {source.volume}, and this run to {volume}; create it anew "
            f"with the same checkpoint.volume, or with the path as model.initFrom.checkpoint"
        )
    return None


def await_source(draft: Draft, wish: Wish) -> Decision | Draft:
    """Return the decision to wait; else the draft of a run that can begin, which remembers whose
    checkpoint it begins with.
    """
    if _source_name(wish) is None or draft.status.init_from is not None:
        return draft
    source = draft.seen.source
    assert source is not None, "the run that is awaited was not looked at"
    message = _why_wait(source, namespace=draft.seen.run.namespace)
    if message is not None:
        draft = draft.not_running(Reason.WAITING_FOR_INIT_FROM, message)
        return draft.finish(requeue_s=EVENTS_S)
    assert source.uid is not None
    return draft.update(init_from=InitFromStatus(name=source.name, uid=source.uid))


def _refused(message: str) -> Rejection:
    return Rejection(
        reason=Reason.INVALID_SPEC, message=f"spec.model.initFrom.modelScaling: {message}"
    )


def _why_wait(source: SourceRun, *, namespace: str) -> str | None:
    """Return what a run waits for; None where it need not."""
    progress = source.status.progress
    has_checkpoint = progress is not None and progress.checkpoint_step is not None
    if source.uid is None:
        return (
            f"There is no ModelScaling {source.name}, and the run begins with its checkpoint; "
            f"create it, or create this run anew without model.initFrom."
        )
    if _holds(source.status, ConditionType.COMPLETE):
        return None
    if _holds(source.status, ConditionType.FAILED):
        return None if has_checkpoint else _empty(source, "failed", "delete it and create it anew")
    if _holds(source.status, ConditionType.SUSPENDED):
        return None if has_checkpoint else _empty(source, "been suspended", "let it go on")
    step = f" at step {progress.step} of {progress.total_steps}" if progress else ""
    message = f"The run begins with the last checkpoint of {source.name}, which is not over{step}"
    if not has_checkpoint:
        return f"{message}."
    return (
        f"{message}; to begin with the newest that it has by now, suspend it, or create this run "
        f"anew with model.initFrom.checkpoint.path: the directory "
        f"{namespace}/{source.name}/{source.uid} of checkpoint.volume, where template mounts it."
    )


def _empty(source: SourceRun, has: str, fix: str) -> str:
    return f"{source.name}, with whose checkpoint the run begins, has {has} without one; {fix}."


def _holds(status: ModelScalingStatus, kind: ConditionType) -> bool:
    return any(
        condition.type == kind and condition.status is ConditionStatus.TRUE
        for condition in status.conditions
    )


def _source_name(wish: Wish) -> str | None:
    init_from = wish.spec.model.init_from
    if init_from is None or init_from.model_scaling is None:
        return None
    return init_from.model_scaling.name


async def _get(kube: Kube, run: RunIdentity, name: str) -> Json | None:
    try:
        return await kube.get(RUNS, run.namespace, name)
    except NotFoundError:
        return None


def _awaits(body: Mapping[str, Any]) -> str | None:
    """Return the name of the run that another one waits for, if it does."""
    status = parse_status(body.get("status"))
    if status.init_from is not None or status.completion_time is not None:
        return None
    init_from = body["spec"]["model"].get("initFrom") or {}
    name = (init_from.get("modelScaling") or {}).get("name")
    return name if isinstance(name, str) else None

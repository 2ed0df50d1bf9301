"""How a new group comes to the newest state that any of its ranks has, in memory or on disk."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from modelscaling.protocol import StateSource
from modelscaling_trainer.checkpoint import catalog, fence
from modelscaling_trainer.errors import CheckpointError, ConfigurationError, GroupLostError
from modelscaling_trainer.optimizer import MOMENTS
from modelscaling_trainer.process_group import all_gather
from modelscaling_trainer.redistribution import move, transfers
from modelscaling_trainer.resumption import trace
from modelscaling_trainer.settlement import Held, Holding, Initialise, Load, Move, settle
from modelscaling_trainer.state import MODEL, NOTHING, best_informed

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    import torch.distributed as dist

    from modelscaling.configuration import RunConfiguration
    from modelscaling_trainer.group import Group
    from modelscaling_trainer.resumption import History, Origin, Trained
    from modelscaling_trainer.shard import Shard
    from modelscaling_trainer.state import Counters, StatePart, TrainingState

_log = logging.getLogger(__name__)

_HOST = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What must be the same on all ranks, and what each adds."""

    configuration: RunConfiguration
    last_step: int
    corpus: str
    """Digest of the tokens."""
    peak_flops: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What the ranks of a group have learned of each other."""

    checkpoint_step: int
    """The newest checkpoint that any of them sees; NOTHING where there is none."""
    peak_flops: float
    """Of all devices that train together."""
    formed_at: float
    """When all had the state, by rank 0's clock, seconds since 1970: the same on all."""
    origin: Origin | None
    """What the group goes on with; None where it begins the run."""
    local_ranks: tuple[int, ...]
    """Of the processes that train, each in its pod."""


def take_over(
    identity: Identity,
    group: Group,
    everybody: dist.ProcessGroup,
    *,
    held: Sequence[StatePart],
    new: TrainingState | None,
    history: History,
    device: torch.device,
    directory: Path | None,
) -> Taken:
    """Fill `new`, on all ranks of the mesh, with the newest state that all have together; one of
    `held` may be `new` itself. Those that leave have no `new`, and only give.

    Returns when all ranks have been filled. What a rank held before stays whole until then, unless
    it is the same as `new`, so a group that is lost in between leaves the state before to the next
    one, and on ranks that were filled the new one too.

    Raises:
        ConfigurationError: the ranks do not have the same run or data, or the checkpoint is of
            another model.
        CheckpointError: the directory of the checkpoints cannot be read.
        GroupLostError: a peer is gone, or a newer group has taken this one's place.
    """
    damaged: set[int] = set()
    while True:
        seen = _look(directory, except_steps=damaged)
        offers = all_gather(_offer(identity, group, held, history, seen), everybody)
        _check_same(offers)
        _check_current(group, offers)
        decision = settle([offer["holding"] for offer in offers])
        _log.info("state of the group: %s", decision)
        match decision:
            case Move():
                _move(identity, group, decision, offers, held=held, new=new, device=device)
            case Initialise():
                if new is not None:
                    new.initialise(identity.configuration.training.seed)
            case Load(step=step):
                if not _load(identity, directory, step, new, everybody):
                    damaged.add(step)
                    continue
        # Nobody goes on, or away, before all have what they need.
        marks = all_gather({"now": time.time(), "idle": history.idle_seconds}, everybody)
        now = marks[0]["now"]
        if new is not None:
            new.part.sit_at(group.mesh, group.rank)
            new.start_clock(now)
        return Taken(
            checkpoint_step=max(offer["holding"].checkpoint_step for offer in offers),
            peak_flops=sum(offer["peak_flops"] for offer in offers[: group.mesh.size]),
            formed_at=now,
            origin=_origin(decision, [offer["trained"] for offer in offers], marks),
            local_ranks=tuple(offer["local_rank"] for offer in offers[: group.mesh.size]),
        )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one rank sees of the run's checkpoints."""

    step: int
    """Of the newest; NOTHING where there is none."""
    claim: int
    """The newest group that saves there."""


def _look(directory: Path | None, *, except_steps: Collection[int]) -> _Seen:
    """Look at the checkpoints.

    Raises:
        ConfigurationError: the newest is of a newer format.
        CheckpointError: the directory cannot be read: what there may be must not be passed over.
    """
    if directory is None:
        return _Seen(NOTHING, 0)
    try:
        newest = catalog.find_newest(directory, except_steps=except_steps)
        return _Seen(catalog.step_of(newest), fence.newest_claim(directory))
    except OSError as error:
        raise CheckpointError(
            f"the checkpoints in {str(directory)!r} cannot be read: {error}; look after the volume"
        ) from error


def _offer(
    identity: Identity,
    group: Group,
    held: Sequence[StatePart],
    history: History,
    seen: _Seen,
) -> dict[str, Any]:
    """Return what this rank is and has, for the others."""
    return {
        "configuration": identity.configuration.model_dump(mode="json"),
        "last_step": identity.last_step,
        "corpus": identity.corpus,
        "peak_flops": identity.peak_flops,
        "local_rank": group.local_rank,
        "holding": Holding(held=tuple(map(_describe, held)), checkpoint_step=seen.step),
        "claim": seen.claim,
        "counters": [part.counters for part in held],
        "trained": history.trained,
    }


def _describe(part: StatePart) -> Held:
    return Held(
        step=part.counters.step,
        digest=part.counters.sample_digest,
        mesh=part.mesh,
        rank=part.rank,
        is_snapshot=part.is_snapshot,
    )


def _move(
    identity: Identity,
    group: Group,
    decision: Move,
    offers: Sequence[Mapping[str, Any]],
    *,
    held: Sequence[StatePart],
    new: TrainingState | None,
    device: torch.device,
) -> None:
    """Fill `new` from the memories of the ranks that hold the state."""
    plan = transfers(
        identity.configuration.model,
        before=decision.mesh,
        holders=decision.holders,
        after=group.mesh,
    )
    counters = _counters(decision, offers)
    with new.changing(counters) if new is not None else nullcontext():
        move(
            plan,
            rank=group.rank,
            old=_parts(decision, held),
            new=new.shards() if new is not None else {},
            kinds=(MODEL, *MOMENTS),
            through=_HOST if decision.needs_snapshots else device,
        )
    if new is not None:
        new.optimizer.set_steps(decision.step)


def _counters(decision: Move, offers: Sequence[Mapping[str, Any]]) -> Counters:
    """Return the counters of the state, as the ranks that hold a part of it know them."""
    of_all: list[Counters] = [counters for offer in offers for counters in offer["counters"]]
    return best_informed(
        counters
        for counters in of_all
        if (counters.step, counters.sample_digest) == (decision.step, decision.digest)
    )


def _parts(decision: Move, held: Sequence[StatePart]) -> dict[int, Mapping[str, Shard]]:
    """Return the shards of each part of the state that this rank has, by the part's rank."""
    found: dict[int, Mapping[str, Shard]] = {}
    for part in sorted(held, key=lambda part: part.is_snapshot):
        state = (part.counters.step, part.counters.sample_digest, part.mesh)
        if state == (decision.step, decision.digest, decision.mesh):
            found.setdefault(part.rank, part.shards)
    return found


def _load(
    identity: Identity,
    directory: Path | None,
    step: int,
    new: TrainingState | None,
    everybody: dist.ProcessGroup,
) -> bool:
    """Load a checkpoint on all ranks that train; return whether all could."""
    is_loaded = True
    if new is not None:
        found = directory and catalog.find(directory, step)
        if found:
            catalog.check_shape(found, identity.configuration.model)
        is_loaded = bool(found and new.load(found.load, found.counters))
    answers = all_gather({"is_loaded": is_loaded}, everybody)
    return all(answer["is_loaded"] for answer in answers)


def _origin(
    decision: Move | Load | Initialise,
    trained: Sequence[Trained | None],
    marks: Sequence[Mapping[str, Any]],
) -> Origin | None:
    """Return what the group goes on with; None where it begins the run."""
    match decision:
        case Move(step=step, needs_snapshots=needs_snapshots):
            source = StateSource.SNAPSHOT if needs_snapshots else StateSource.MEMORY
        case Load(step=step):
            source = StateSource.CHECKPOINT
        case Initialise():
            step, source = 0, StateSource.INITIAL
    return trace(
        source,
        step,
        trained,
        idle_seconds=[mark["idle"] for mark in marks],
        now=marks[0]["now"],
    )


def _check_same(offers: list[dict[str, Any]]) -> None:
    """Refuse a group whose ranks do not do the same work."""
    first = offers[0]
    for rank, offer in enumerate(offers):
        for what in ("configuration", "last_step"):
            difference = _difference(what, first[what], offer[what])
            if difference:
                raise ConfigurationError(
                    "ConfigurationMismatch",
                    f"{difference[0]} is {difference[1]!r} on rank 0 and {difference[2]!r} on "
                    f"rank {rank}; start all processes with the same configuration",
                )
        if offer["corpus"] != first["corpus"]:
            raise ConfigurationError(
                "DataMismatch",
                f"the data is {first['corpus']} on rank 0 and {offer['corpus']} on rank {rank} "
                f"(digests of its tokens); mount the same files into all pods",
            )


def _check_current(group: Group, offers: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a group that was cut off while another took its place."""
    claim = max(offer["claim"] for offer in offers)
    if claim > group.generation:
        raise GroupLostError(fence.describe(group.generation, claim))


def _difference(name: str, first: object, other: object) -> tuple[str, object, object] | None:
    """Return the name of a field that differs, with both values, or None."""
    if isinstance(first, dict) and isinstance(other, dict):
        for key in first.keys() | other.keys():
            difference = _difference(f"{name}.{key}", first.get(key), other.get(key))
            if difference:
                return difference
        return None
    return None if first == other else (name, first, other)

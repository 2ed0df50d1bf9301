"""How a new group comes to the newest state that any of its ranks has, in memory or on disk."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from modelscaling.layout import trained_weights
from modelscaling.protocol import StateSource
from modelscaling_trainer.becoming import Becoming, become
from modelscaling_trainer.checkpoint import catalog, fence
from modelscaling_trainer.checkpoint.directory import being_read
from modelscaling_trainer.errors import CheckpointError, ConfigurationError, GroupLostError
from modelscaling_trainer.growth.verdict import Outgrown
from modelscaling_trainer.optimizer import MOMENTS
from modelscaling_trainer.process_group import all_gather
from modelscaling_trainer.redistribution import move, transfers
from modelscaling_trainer.resumption import trace
from modelscaling_trainer.settlement import (
    Held,
    Holding,
    Initialise,
    Load,
    Move,
    outlives_leavers,
    settle,
)
from modelscaling_trainer.state import MODEL, NOTHING, best_informed
from modelscaling_trainer.transfer import open_transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    import torch.distributed as dist

    from modelscaling.configuration import RunConfiguration
    from modelscaling.growth.trained_model import TrainedModel
    from modelscaling.mesh import Mesh
    from modelscaling_trainer.checkpoint.catalog import Checkpoint
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
    origin: Origin
    """What the group goes on with."""
    local_ranks: tuple[int, ...]
    """Of the processes that train, each in its pod."""
    state: TrainingState | None
    """What this process trains; None where it leaves."""
    outgrown: Outgrown | None
    """What the state has grown from; None where it has not."""


def take_over(
    identity: Identity,
    group: Group,
    everybody: dist.ProcessGroup,
    *,
    find_held: Callable[[], Sequence[StatePart]],
    place: Callable[[TrainedModel], TrainingState] | None,
    history: History,
    device: torch.device,
    directory: Path | None,
) -> Taken:
    """Fill a state, on all ranks of the mesh, with the newest that all have together; where that is
    of a smaller model than the declared one, it grows on the way.

    `find_held` returns what this process holds, which a load that fails changes. `place` returns
    what is filled, of a model that is known only now; it may be one of those that are held. Those
    that leave have no `place`, and only give.

    Returns when all ranks have been filled. What a rank held before stays whole until then, unless
    it is what is filled, so a group that is lost in between leaves the state before to the next
    one, and on ranks that were filled the new one too.

    Raises:
        ConfigurationError: the ranks do not have the same run or data, or the state, or what
            spec.model.initFrom names, is of a model that does not become the declared one.
        CheckpointError: the directory of the checkpoints, or weights of spec.model.initFrom, cannot
            be read; or the run has a checkpoint that is not there.
        GroupLostError: a peer is gone, or a newer group has taken this one's place.
    """
    damaged: set[int] = set()
    while True:
        # Those that leave may see another volume than those that go on.
        seen = _look(directory if place is not None else None, except_steps=damaged)
        held = find_held()
        offers = all_gather(_offer(identity, group, held, history, seen), everybody)
        _check_same(offers)
        _check_current(group, offers)
        holdings = [offer["holding"] for offer in offers]
        decision = settle(holdings)
        if (
            isinstance(decision, Move)
            and not decision.step
            and not _is_declared(identity, decision)
        ):
            decision = Initialise()  # nothing was trained that could be lost
        _log.info("state of the group: %s", decision)
        if isinstance(decision, Initialise):
            _refuse_to_pass_over(max(offer["known_step"] for offer in offers), directory)
        is_first = isinstance(decision, Initialise) and place is not None
        transfer = open_transfer(identity.configuration) if is_first else None
        becoming = become(identity.configuration, decision, transfer)
        new = place(becoming.model) if place is not None else None
        before: Counters | None = None
        match decision:
            case Move():
                before = _counters(decision, offers)
                _move(becoming, group, decision, before, held=held, new=new, device=device)
            case Initialise():
                if new is not None:
                    seed = identity.configuration.training.seed
                    new.initialise(seed, partial(transfer.fill, seed=seed) if transfer else None)
            case Load(step=step):
                found = catalog.find(directory, step) if directory and new is not None else None
                if not _load(becoming, found, new, everybody):
                    damaged.add(step)
                    continue
                before = found.counters if found else None
        # Nobody goes on, or away, before all have what they need.
        marks = all_gather({"now": time.time(), "idle": history.idle_seconds}, everybody)
        now = marks[0]["now"]
        if new is not None:
            new.part.sit_at(group.mesh, group.rank)
            new.start_clock(now)
        return Taken(
            checkpoint_step=max(holding.checkpoint_step for holding in holdings),
            peak_flops=sum(offer["peak_flops"] for offer in offers[: group.mesh.size]),
            formed_at=now,
            origin=_origin(decision, [offer["trained"] for offer in offers], marks),
            local_ranks=tuple(offer["local_rank"] for offer in offers[: group.mesh.size]),
            state=new,
            outgrown=_outgrown(becoming, decision, before, holdings, ranks=group.mesh.size),
        )


def _refuse_to_pass_over(step: int, directory: Path | None) -> None:
    """Refuse to begin a run anew that has a checkpoint, wherever that is; NOTHING stands for none.

    Raises:
        CheckpointError: it has one.
    """
    if step == NOTHING:
        return
    where = "no volume is mounted" if directory is None else f"{directory} has none that is whole"
    raise CheckpointError(
        f"the run has a checkpoint of step {step}, and {where}; put its checkpoints there, "
        f"or name the volume that has them in spec.checkpoint.volume; to begin again, delete the "
        f"run and create it anew"
    )


def _outgrown(
    becoming: Becoming,
    decision: Move | Load | Initialise,
    before: Counters | None,
    holdings: Sequence[Holding],
    *,
    ranks: int,
) -> Outgrown | None:
    if not becoming.growth or before is None or isinstance(decision, Initialise):
        return None
    return Outgrown(
        model=decision.model,
        counters=before,
        is_kept=outlives_leavers(decision, holdings, ranks=ranks),
    )


def _is_declared(identity: Identity, decision: Move) -> bool:
    declared = identity.configuration.model
    return replace(decision.model.shape, norm_epsilon=declared.norm_epsilon) == declared


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one rank sees of the run's checkpoints."""

    step: int
    """Of the newest; NOTHING where there is none."""
    model: TrainedModel | None
    """What that is of."""
    claim: int
    """The newest group that saves there."""


def _look(directory: Path | None, *, except_steps: Collection[int]) -> _Seen:
    """Look at the checkpoints.

    Raises:
        ConfigurationError: the newest is of a newer format.
        CheckpointError: the directory cannot be read: what there may be must not be passed over.
    """
    if directory is None:
        return _Seen(NOTHING, None, 0)
    with being_read(directory):
        newest = catalog.find_newest(directory, except_steps=except_steps)
        model = newest.trained if newest else None
        return _Seen(catalog.step_of(newest), model, fence.newest_claim(directory))


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
        "holding": Holding(
            held=tuple(map(_describe, held)),
            checkpoint_step=seen.step,
            checkpoint_model=seen.model,
        ),
        # Rank 0 may know of a newer one than its group was told of when it was decided.
        "known_step": NOTHING if group.checkpoint_step is None else group.checkpoint_step,
        "claim": seen.claim,
        "counters": [part.counters for part in held],
        "trained": history.trained,
    }


def _describe(part: StatePart) -> Held:
    return Held(
        step=part.counters.step,
        digest=part.counters.sample_digest,
        model=part.model,
        mesh=part.mesh,
        rank=part.rank,
        is_snapshot=part.is_snapshot,
    )


def _move(
    becoming: Becoming,
    group: Group,
    decision: Move,
    before: Counters,
    *,
    held: Sequence[StatePart],
    new: TrainingState | None,
    device: torch.device,
) -> None:
    """Fill `new` from the memories of the ranks that hold the state."""
    plan = transfers(
        decision.model.shape,
        before=decision.mesh,
        holders=decision.holders,
        after=group.mesh,
        needed=partial(becoming.needed, group.mesh) if becoming.growth else None,
    )
    trained = {*trained_weights(decision.model.shape)}
    counters = becoming.counters(before)
    keeps = new is not None and _has_its_part(new, group.rank, decision)
    with new.changing(counters, keeps_tensors=keeps) if new is not None else nullcontext():
        filled = becoming.shards_before(new) if new is not None else {}
        move(
            plan,
            rank=group.rank,
            old=_parts(decision, held),
            new=filled,
            kinds=lambda weight: (MODEL, *MOMENTS) if weight in trained else (MODEL,),
            through=_HOST if decision.needs_snapshots else device,
        )
        if new is not None:
            becoming.finish(new, filled)
    if new is not None:
        new.optimizer.set_steps(decision.step)


def _counters(decision: Move, offers: Sequence[Mapping[str, Any]]) -> Counters:
    """Return the counters of the state, as the ranks that hold a part of it know them."""
    state = (decision.step, decision.digest, decision.model)
    return best_informed(
        counters
        for offer in offers
        for part, counters in zip(offer["holding"].held, offer["counters"], strict=True)
        if (part.step, part.digest, part.model) == state
    )


def _has_its_part(new: TrainingState, rank: int, decision: Move) -> bool:
    """Whether what is to be filled holds just that already: nothing of it moves then, and a group
    that is lost while others are filled takes nothing from this rank.
    """
    return any(
        part.rank in decision.holders.get(rank, ()) and _state_of(part) == _wanted(decision)
        for part in new.parts()
    )


def _parts(decision: Move, held: Sequence[StatePart]) -> dict[int, Mapping[str, Shard]]:
    """Return the shards of each part of the state that this rank has, by the part's rank."""
    found: dict[int, Mapping[str, Shard]] = {}
    for part in sorted(held, key=lambda part: part.is_snapshot):
        if _state_of(part) == _wanted(decision):
            found.setdefault(part.rank, part.shards)
    return found


def _state_of(part: StatePart) -> tuple[int, str, TrainedModel, Mesh]:
    """Return what tells a state, on its mesh, from others."""
    return (part.counters.step, part.counters.sample_digest, part.model, part.mesh)


def _wanted(decision: Move) -> tuple[int, str, TrainedModel, Mesh]:
    """Return the same of the state that is taken."""
    return (decision.step, decision.digest, decision.model, decision.mesh)


def _load(
    becoming: Becoming,
    found: Checkpoint | None,
    new: TrainingState | None,
    everybody: dist.ProcessGroup,
) -> bool:
    """Load a checkpoint on all ranks that train; return whether all could."""
    is_loaded = True
    if new is not None:
        is_loaded = bool(found and _fill(becoming, found, new))
    answers = all_gather({"is_loaded": is_loaded}, everybody)
    return all(answer["is_loaded"] for answer in answers)


def _fill(becoming: Becoming, checkpoint: Checkpoint, new: TrainingState) -> bool:
    """Fill a state from a checkpoint; return whether it could be read."""

    def fill(_: Mapping[str, Shard]) -> None:
        old = becoming.shards_before(new)
        checkpoint.load(old)
        becoming.finish(new, old)

    return new.load(fill, becoming.counters(checkpoint.counters))


def _origin(
    decision: Move | Load | Initialise,
    trained: Sequence[Trained | None],
    marks: Sequence[Mapping[str, Any]],
) -> Origin:
    """Return what the group goes on with."""
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

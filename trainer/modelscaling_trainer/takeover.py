"""How a new group comes to the newest state that any of its ranks has, in memory or on disk."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from modelscaling_trainer.checkpoint import catalog
from modelscaling_trainer.errors import ConfigurationError
from modelscaling_trainer.optimizer import MOMENTS
from modelscaling_trainer.process_group import all_gather
from modelscaling_trainer.redistribution import move, transfers
from modelscaling_trainer.settlement import Holding, Initialise, Keep, Load, Move, settle
from modelscaling_trainer.state import MODEL, NOTHING, Counters

if TYPE_CHECKING:
    from pathlib import Path

    from modelscaling.configuration import RunConfiguration
    from modelscaling_trainer.group import Group
    from modelscaling_trainer.state import TrainingState

_log = logging.getLogger(__name__)


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
    """Of all their devices together."""
    formed_at: float
    """When they met by rank 0's clock, seconds since 1970: the same on all."""


def take_over(
    identity: Identity,
    group: Group,
    *,
    held: TrainingState | None,
    new: TrainingState,
    directory: Path | None,
) -> Taken:
    """Fill `new`, on all ranks, with the newest state that they have; it may be `held` itself.

    What a rank held before stays whole until `new` is, as the group may be lost in between, unless
    they are the same.

    Raises:
        ConfigurationError: the ranks do not have the same run or data, or the checkpoint is of
            another model.
        GroupLostError: a peer is gone.
    """
    damaged: set[int] = set()
    while True:
        newest = directory and catalog.find_newest(directory, except_steps=damaged)
        offers = all_gather(_offer(identity, held, catalog.step_of(newest or None)))
        _check_same(offers)
        decision = settle([_holding(offer) for offer in offers], group.mesh)
        _log.info("state of the group: %s", decision)
        match decision:
            case Keep():
                pass
            case Move():
                counters = Counters(**offers[next(iter(decision.holders))]["counters"])
                _move(identity, group, decision, counters, held=held, new=new)
            case Initialise():
                new.initialise(identity.configuration.training.seed)
            case Load(step=step):
                if not _load(identity, directory, step, new):
                    damaged.add(step)
                    continue
        new.part.sit_at(group.mesh, group.rank)
        new.start_clock(offers[0]["now"])
        return Taken(
            checkpoint_step=max(offer["checkpoint_step"] for offer in offers),
            peak_flops=sum(offer["peak_flops"] for offer in offers),
            formed_at=offers[0]["now"],
        )


def _offer(identity: Identity, held: TrainingState | None, checkpoint_step: int) -> dict[str, Any]:
    """Return what this rank is and has, for the others."""
    offer = {
        "configuration": identity.configuration.model_dump(mode="json"),
        "last_step": identity.last_step,
        "corpus": identity.corpus,
        "checkpoint_step": checkpoint_step,
        "peak_flops": identity.peak_flops,
        "now": time.time(),
    }
    if held is None or held.step == NOTHING:
        return {**offer, "counters": None}
    return {
        **offer,
        "counters": asdict(held.counters),
        "mesh": held.part.mesh,
        "rank": held.part.rank,
    }


def _holding(offer: dict[str, Any]) -> Holding:
    if offer["counters"] is None:
        return Holding(checkpoint_step=offer["checkpoint_step"])
    return Holding(
        memory_step=offer["counters"]["step"],
        memory_digest=offer["counters"]["sample_digest"],
        mesh=offer["mesh"],
        rank=offer["rank"],
        checkpoint_step=offer["checkpoint_step"],
    )


def _move(
    identity: Identity,
    group: Group,
    decision: Move,
    counters: Counters,
    *,
    held: TrainingState | None,
    new: TrainingState,
) -> None:
    """Fill `new` from the memories of the ranks that hold the state."""
    is_holder = held is not None and group.rank in decision.holders
    plan = transfers(
        identity.configuration.model,
        before=decision.mesh,
        holders=decision.holders,
        after=group.mesh,
    )
    with new.changing(counters):
        move(
            plan,
            rank=group.rank,
            old=held.shards() if held is not None and is_holder else None,
            new=new.shards(),
            kinds=(MODEL, *MOMENTS),
        )
        new.optimizer.set_steps(counters.step)


def _load(identity: Identity, directory: Path | None, step: int, new: TrainingState) -> bool:
    """Load a checkpoint on all ranks; return whether all could."""
    found = directory and catalog.find(directory, step)
    if found:
        catalog.check_shape(found, identity.configuration.model)
    is_loaded = bool(found and new.load(found.load, found.counters))
    return all(answer["is_loaded"] for answer in all_gather({"is_loaded": is_loaded}))


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


def _difference(name: str, first: object, other: object) -> tuple[str, object, object] | None:
    """Return the name of a field that differs, with both values, or None."""
    if isinstance(first, dict) and isinstance(other, dict):
        for key in first.keys() | other.keys():
            difference = _difference(f"{name}.{key}", first.get(key), other.get(key))
            if difference:
                return difference
        return None
    return None if first == other else (name, first, other)

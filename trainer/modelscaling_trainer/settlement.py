"""Where a new group takes its state from: the decision, as a pure function of what its ranks have.

The highest step wins. At the same step memory wins over disk: it is as new and moves faster.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelscaling_trainer.state import NOTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What one rank has."""

    memory_step: int = NOTHING
    memory_digest: str | None = None
    """The sample digest of the state in memory."""
    checkpoint_step: int = NOTHING
    """The newest checkpoint that it sees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """All ranks hold the same state already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Broadcast:
    """One rank's memory goes to all."""

    source: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """All ranks load a checkpoint."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Initialise:
    """Nobody has anything: the run begins."""


def settle(holdings: list[Holding]) -> Keep | Broadcast | Load | Initialise:
    """Return where the state comes from; the same on every rank."""
    memory_step = max(holding.memory_step for holding in holdings)
    checkpoint_step = max(holding.checkpoint_step for holding in holdings)
    if checkpoint_step > memory_step:
        return Load(step=checkpoint_step)
    if memory_step == NOTHING:
        return Initialise()
    held = {(holding.memory_step, holding.memory_digest) for holding in holdings}
    if len(held) == 1:
        return Keep()
    source = next(
        rank for rank, holding in enumerate(holdings) if holding.memory_step == memory_step
    )
    return Broadcast(source=source)

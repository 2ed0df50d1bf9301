"""What growing changed about the loss, over runs that differ in their seed only."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SEEDS = (1, 2, 3)
_STUDENT_T = 4.303
"""The quantile of 97.5 % of Student's t for the differences of three seeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Both ways to a model of the same shape with the same seed, as validation losses, nats."""

    grown: float
    scratch: float
    small: float
    """Of the model that never grows, for the same FLOPs."""

    @property
    def difference(self) -> float:
        """Below 0 where growing pays."""
        return self.grown - self.scratch


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean over seeds, and how far it may be from the mean over all seeds."""

    mean: float
    spread: float
    """Half of the interval that holds that mean in 95 of 100 experiments."""

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Difference:
        """Take the pair of each of `SEEDS`."""
        assert len(pairs) == len(SEEDS), "the quantile is that of so many seeds"
        differences = [pair.difference for pair in pairs]
        deviation = statistics.stdev(differences)
        return cls(statistics.mean(differences), _STUDENT_T * deviation / sqrt(len(pairs)))

    @property
    def reading(self) -> str:
        """Say which way is better, where that is more than chance."""
        if abs(self.mean) <= self.spread:
            return "not told apart"
        return "growing is better" if self.mean < 0 else "growing is worse"

    def __str__(self) -> str:
        """Return it with three decimals."""
        return f"{self.mean:+.3f} ± {self.spread:.3f}"


def table(pairs: Mapping[str, Sequence[Pair]]) -> Iterator[str]:
    """Yield the lines of a table with a row for each way to grow, by its name."""
    seeds = " | ".join(f"seed {seed}" for seed in SEEDS)
    yield f"| | small | from scratch | grown | {seeds} | difference | |"
    yield "|---" * (len(SEEDS) + 6) + "|"
    for name, of_seeds in pairs.items():
        difference = Difference.of(of_seeds)
        cells = (
            name,
            f"{statistics.mean(pair.small for pair in of_seeds):.3f}",
            f"{statistics.mean(pair.scratch for pair in of_seeds):.3f}",
            f"{statistics.mean(pair.grown for pair in of_seeds):.3f}",
            *(f"{pair.difference:+.3f}" for pair in of_seeds),
            str(difference),
            difference.reading,
        )
        yield f"| {' | '.join(cells)} |"

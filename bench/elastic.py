"""What changes and failures cost a running job: ours, and torchrun's elastic agents in turns.

A pod is an agent with one worker, both sides' on this machine and talking over loopback. Ours keeps
no checkpoints here; torchrun's script saves each step to memory, the best that it can have.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bench import goodput
from bench.case import ELASTIC_CASES
from bench.contest import Ratio
from bench.environment import compiled_modules
from bench.outage import Change, tour
from bench.pods import our_pods
from bench.torchrun import torchrun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from bench.case import Case
    from bench.outage import Job, Outage
    from modelscaling.api.training import Precision

OURS = "ours"
PEER = "torchrun"

_MEMORY = Path("/dev/shm")  # noqa: S108 - a place for files that are made under names of their own
_LEAST_GOODPUT = 0.95


class _Start(Protocol):
    def __call__(
        self, case: Case, precision: Precision, directory: Path, environment: Mapping[str, str]
    ) -> AbstractContextManager[Job]: ...


_SIDES: Mapping[str, _Start] = {OURS: our_pods, PEER: torchrun}


def measure(precision: Precision, *, rounds: int, goodput_seconds: float) -> None:
    """Print all tables; without that of goodput where no time is given to it."""
    _changes(precision, rounds=rounds)
    if goodput_seconds:
        _goodputs(precision, seconds=goodput_seconds)


def _changes(precision: Precision, *, rounds: int) -> None:
    """Lead both sides through all changes, and print a table for each case."""
    for case in ELASTIC_CASES.values():
        taken: dict[str, list[Mapping[Change, Outage]]] = {side: [] for side in _SIDES}
        with compiled_modules() as environment:
            for _ in range(rounds):
                for side, start in _SIDES.items():
                    taken[side].append(
                        _tour(partial(_started, start, case, precision, environment))
                    )
        print(f"\n## Seconds without a step, {case.name} with {case.batch} samples\n")
        print("\n".join(table(taken[OURS], taken[PEER])))


def _goodputs(precision: Precision, *, seconds: float) -> None:
    """Print how many steps are left where a worker is killed again and again."""
    title = f"Goodput of XS, dp2, with a worker killed every {goodput.PERIOD_S:.0f} s"
    print(f"\n## {title}; ours at least {_LEAST_GOODPUT}\n")
    print(f"| steps in {seconds:.0f} s | disturbed | undisturbed | ratio |")
    print("|---|---|---|---|")
    case = ELASTIC_CASES["XS"]
    with compiled_modules() as environment:
        for side, start in _SIDES.items():
            disturbed, undisturbed = goodput.measure(
                partial(_started, start, case, precision, environment), seconds=seconds
            )
            ratio = disturbed / undisturbed
            print(f"| {side} | {disturbed} | {undisturbed} | {ratio:.3f} |", flush=True)


@contextmanager
def _started(
    start: _Start, case: Case, precision: Precision, environment: Mapping[str, str]
) -> Iterator[Job]:
    place = _MEMORY if _MEMORY.is_dir() else None
    with (
        tempfile.TemporaryDirectory(dir=place) as name,
        start(case, precision, Path(name), environment) as job,
    ):
        yield job


def _tour(start: Callable[[], AbstractContextManager[Job]]) -> Mapping[Change, Outage]:
    """Return what each change cost, as far as the job got."""
    taken: dict[Change, Outage] = {}
    try:
        with start() as job:
            taken.update(tour(job))
    except TimeoutError as error:
        print(error, file=sys.stderr)
    return taken


def table(
    ours: Sequence[Mapping[Change, Outage]], theirs: Sequence[Mapping[Change, Outage]]
) -> Iterator[str]:
    """Yield the lines of a table of medians over rounds, with the ends of their range, and of the
    steps that had to be done again in all rounds.
    """
    yield f"| | {OURS} | at most | {PEER} | {OURS} / {PEER} | steps again | by {PEER} |"
    yield "|---" * 7 + "|"
    for change in Change:
        mine = [taken[change] for taken in ours if change in taken]
        peers = [taken[change] for taken in theirs if change in taken]
        cells = (
            change.value,
            _seconds(mine, len(ours)),
            str(change.most_seconds),
            _seconds(peers, len(theirs)),
            _ratio(ours, theirs, change),
            str(sum(outage.steps_again for outage in mine)),
            str(sum(outage.steps_again for outage in peers)),
        )
        yield f"| {' | '.join(cells)} |"


def _seconds(outages: Sequence[Outage], rounds: int) -> str:
    missing = "" if len(outages) == rounds else f", in {len(outages)} of {rounds} rounds"
    if not outages:
        return f"never went on{missing}"
    seconds = [outage.seconds for outage in outages]
    median = statistics.median(seconds)
    return f"{median:.2f} ({min(seconds):.2f} to {max(seconds):.2f}){missing}"


def _ratio(
    ours: Sequence[Mapping[Change, Outage]],
    theirs: Sequence[Mapping[Change, Outage]],
    change: Change,
) -> str:
    both = [
        (a[change], b[change])
        for a, b in zip(ours, theirs, strict=True)
        if change in a and change in b
    ]
    if not both:
        return ""
    return str(Ratio.of([mine.seconds for mine, _ in both], [peer.seconds for _, peer in both]))

"""Measure training against peers, and print one report of ratios; below 1 is better.

    OMP_NUM_THREADS=1 python -m bench [--section S XS two start checkpoint elastic growth]
                                      [--rounds 7] [--goodput-seconds 300] [--growth-steps 400]

`make bench` installs what the peers need and does that. Each number is the median over rounds of
the ratio within a round, in which all took their turn, and behind it the ends of the middle half.
Every process has one thread, and no more of them compute at once than the machine has cores. On a
CPU without bfloat16 products all is in Float32: BFloat16 would compare our fallback to float32
with an emulation that is up to 200 times slower. The section growth compares losses and no times
(`bench/growth.py`).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bench import checkpoint, elastic, growth
from bench.case import XS, S
from bench.contest import Ratio, hold
from bench.first_step import time_starts
from bench.hugging_face import Spread, hugging_face
from bench.matrix_product import FLOPS, matrix_product
from bench.ours import ours
from bench.titan import torchtitan
from modelscaling.api.training import Precision
from modelscaling.mesh import Mesh
from modelscaling_trainer.precision import compute_dtype, has_bfloat16_products

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench.case import Case
    from bench.contest import Contender

_CHECKPOINT_STEP_S = 3.0
_ELASTIC = "elastic"
_GROWTH = "growth"


def one_thread(case: Case, target: float, precision: Precision, rounds: int) -> None:
    """Compare a step of one process."""
    is_bfloat16 = precision is Precision.BFLOAT16
    contenders = [
        make(is_compiled)
        for is_compiled in (False, True)
        for make in _one_thread_makers(case, precision, is_bfloat16=is_bfloat16)
    ]
    title = f"One thread, {case.name}; in BFloat16 at most {target} of the best peer"
    _print_steps(title, case, precision, contenders, rounds)


def _one_thread_makers(
    case: Case, precision: Precision, *, is_bfloat16: bool
) -> Sequence[Callable[[bool], Contender]]:
    return (
        lambda is_compiled: ours(case, precision, is_compiled=is_compiled),
        lambda is_compiled: hugging_face(case, is_bfloat16=is_bfloat16, is_compiled=is_compiled),
        lambda is_compiled: torchtitan(case, is_bfloat16=is_bfloat16, is_compiled=is_compiled),
    )


def two_processes(precision: Precision, rounds: int) -> None:
    """Compare a step of two processes, and the meshes of two with each other."""
    is_bfloat16 = precision is Precision.BFLOAT16
    replicas = ours(S, precision, mesh=Mesh(dataReplicate=2))
    against_peers = [
        replicas,
        ours(S, precision, mesh=Mesh(dataReplicate=2), is_compiled=True),
        ours(S, precision, mesh=Mesh(dataShard=2)),
        hugging_face(S, is_bfloat16=is_bfloat16, spread=Spread.REPLICATED),
        hugging_face(S, is_bfloat16=is_bfloat16, spread=Spread.SHARDED),
    ]
    title = "Two processes, S; fsdp2 at most 1.1 of dp2, which in BFloat16 is at most 0.62 of DDP"
    _print_steps(title, S, precision, against_peers, rounds)
    others = (Mesh(tensor=2), Mesh(pipeline=2), Mesh(context=2))
    meshes = [replicas, *(ours(S, precision, mesh=mesh) for mesh in others)]
    _print_steps("Our other meshes of two processes, S", S, precision, meshes, rounds)


def start(precision: Precision, rounds: int) -> None:
    """Compare the start of a process."""
    for case in (S, XS):
        starts = time_starts(case, precision, rounds=rounds)
        mine, theirs = starts["ours"], starts["transformers"]
        seconds = Ratio.of([s.seconds for s in mine], [s.seconds for s in theirs])
        memory = Ratio.of([s.peak_bytes for s in mine], [s.peak_bytes for s in theirs])
        print(f"\n## Start of a process to its first step, {case.name}\n")
        print("| | ours | transformers | ours / transformers | at most |")
        print("|---|---|---|---|---|")
        ours_s, theirs_s = (statistics.median(s.seconds for s in side) for side in (mine, theirs))
        print(f"| seconds | {ours_s:.2f} | {theirs_s:.2f} | {seconds} | 0.8 |")
        ours_mb, theirs_mb = (
            statistics.median(s.peak_bytes for s in side) / 1e6 for side in (mine, theirs)
        )
        print(f"| peak memory, MB | {ours_mb:.0f} | {theirs_mb:.0f} | {memory} | 1.1 |")


def checkpoints(_: Precision, rounds: int) -> None:
    """Measure what training waits for a checkpoint, in a process without anything else in it."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(1, context) as pool:
        measured = pool.submit(
            checkpoint.measure, Path(name), rounds=rounds, step_seconds=_CHECKPOINT_STEP_S
        ).result()
    print("\n## A checkpoint of 99 M parameters with AdamW; blocks training for at most 0.15 s\n")
    print("| seconds | ours | torch.distributed.checkpoint |")
    print("|---|---|---|")
    for what in ("blocked_seconds", "save_seconds", "load_seconds"):
        ours_s, theirs_s = (
            f"{statistics.median(times[what] for times in side):.2f}" if what in side[0] else ""
            for side in (measured[checkpoint.OURS], measured[checkpoint.PEER])
        )
        print(f"| {what.removesuffix('_seconds')} | {ours_s} | {theirs_s} |")


def elasticity(precision: Precision, rounds: int, *, goodput_seconds: float) -> None:
    """Measure what changes and failures cost; a round takes minutes, so there are half as many."""
    elastic.measure(precision, rounds=-(-rounds // 2), goodput_seconds=goodput_seconds)


def growing(_: Precision, __: int, *, steps: int) -> None:
    """Compare losses, which neither rounds nor the machine change."""
    growth.measure(steps=steps)


SECTIONS: Mapping[str, Callable[[Precision, int], None]] = {
    "S": partial(one_thread, S, 0.72),
    "XS": partial(one_thread, XS, 0.65),
    "two": two_processes,
    "start": start,
    "checkpoint": checkpoints,
}


def _print_steps(
    title: str, case: Case, precision: Precision, contenders: Sequence[Contender], rounds: int
) -> None:
    """Print each contender's time, and its ratios to our first one and to every peer."""
    product = matrix_product(compute_dtype(precision, torch.device("cpu")))
    seconds = hold([*contenders, product], rounds=rounds)
    peak = FLOPS / statistics.median(seconds[product.name])
    peers = [c.name for c in contenders if not c.name.startswith("ours")]
    columns = [contenders[0].name, *peers]
    print(f"\n## {title}\n")
    print(f"A matrix product on one thread: {peak / 1e9:.0f} GFLOP/s.\n")
    print("| |", " | ".join(["s", "MFU, %", *(f"/ {name}" for name in columns)]), "|")
    print("|---" * (len(columns) + 3) + "|")
    for contender in contenders:
        median = statistics.median(seconds[contender.name])
        mfu = 100 * case.flops / median / peak / contender.processes
        ratios = [
            str(Ratio.of(seconds[contender.name], seconds[name])) if name != contender.name else ""
            for name in columns
        ]
        print(f"| {contender.name} | {median:.3f} | {mfu:.0f} |", " | ".join(ratios), "|")


def main() -> None:
    """Measure the sections that are asked for, or all."""
    names = [*SECTIONS, _ELASTIC, _GROWTH]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--section", choices=names, nargs="+", default=names)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--goodput-seconds", type=float, default=300.0, help="0 leaves it out")
    parser.add_argument(
        "--growth-steps",
        type=int,
        default=growth.STEPS,
        help=f"of a run of growth; with {growth.STEPS}, all take {growth.DURATION}",
    )
    arguments = parser.parse_args()
    sections: dict[str, Callable[[Precision, int], None]] = {
        **SECTIONS,
        _ELASTIC: partial(elasticity, goodput_seconds=arguments.goodput_seconds),
        _GROWTH: partial(growing, steps=arguments.growth_steps),
    }
    # What was started is ended on the way out, which a signal would cut off.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    precision = Precision.BFLOAT16 if has_bfloat16_products() else Precision.FLOAT32
    print(f"# torch {torch.__version__}, {precision}, {_processor()}, {os.cpu_count()} cores")
    for section in arguments.section:
        sections[section](precision, arguments.rounds)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


if __name__ == "__main__":
    main()

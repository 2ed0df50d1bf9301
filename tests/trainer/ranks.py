"""A function of a test's own on every rank of a group of real processes."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore  # not typed as exported by torch.distributed

from tests.trainer.workers import DEADLINE_S, FORKSERVER

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def everybody() -> dist.ProcessGroup:
    """Return the group of all ranks."""
    assert dist.group.WORLD is not None
    return dist.group.WORLD


def on_every_rank(
    function: Callable[..., Any], ranks: int, *arguments: Any, meeting: Path
) -> list[Any]:
    """Return what a module's function, called with the rank and the arguments, returns on each
    rank, in their order. The processes meet in a file that does not exist yet.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(max_workers=ranks, mp_context=FORKSERVER) as pool:
        futures = [
            pool.submit(_run, function, rank, ranks, meeting, arguments) for rank in range(ranks)
        ]
        return [future.result(timeout=DEADLINE_S) for future in futures]


def _run(
    function: Callable[..., Any], rank: int, ranks: int, meeting: Path, arguments: tuple[Any, ...]
) -> Any:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=FileStore(str(meeting), ranks),
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=DEADLINE_S),
    )
    try:
        return function(rank, *arguments)
    finally:
        dist.destroy_process_group()

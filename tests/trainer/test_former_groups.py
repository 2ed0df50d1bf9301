"""What a process keeps of the groups that it was in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from modelscaling.mesh import Mesh
from tests.trainer.runs import make_run
from tests.trainer.workers import results, train_together

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.trainer.workers import Worker

    Start = Callable[..., list[Worker]]

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]


@pytest.mark.parametrize("mesh", [Mesh(tensor=2), Mesh(dataShard=2)], ids=str)
def test_neither_connections_nor_threads_of_former_groups_stay(
    mesh: Mesh, text: Path, start_workers: Start
) -> None:
    workers = start_workers(2, make_run(text, training__total_steps=100_000))
    kept: list[list[tuple[int, int]]] = []
    for generation in range(1, 7):
        train_together(workers, mesh=mesh, generation=generation)
        workers[0].wait_for_step(1)
        workers[0].ask("Reform")
        assert [result.outcome for result in results(workers)] == ["Stopped"] * 2
        kept.append([opened(worker) for worker in workers])

    for of_worker in zip(*kept, strict=True):
        for counts in zip(*of_worker, strict=True):
            # A group has several of both; single ones come and go.
            assert min(counts[3:]) <= max(counts[:3])


def opened(worker: Worker) -> tuple[int, int]:
    """Return the numbers of a worker's descriptors and threads."""
    process = Path(f"/proc/{worker.process.pid}")
    return len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))

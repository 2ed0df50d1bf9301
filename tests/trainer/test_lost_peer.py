"""A process that is killed inside a collective ends the others' group within seconds."""

from __future__ import annotations

import logging
import re
import time
from typing import TYPE_CHECKING

import pytest

from modelscaling.mesh import Mesh
from tests.trainer.runs import make_run, write_text
from tests.trainer.workers import results, start, train_together

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

_log = logging.getLogger(__name__)

DEADLINE_S = 30.0
"""Until all survivors know; they take about 0.1 s where the machine is theirs."""

_MESSAGE = re.compile(
    r"(after )?step (\d+): lost the group while (computing the gradient|"
    r"summing the gradient( of the tied table)?|agreeing on a step|exchanging snapshots|"
    r"exchanging what each member has): .+"
)


@pytest.mark.parametrize("victim", [0, 2], ids=["the first rank", "another rank"])
@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(Mesh(dataShard=4), id="fsdp4"),
        pytest.param(Mesh(pipeline=2, tensor=2), id="pp2 x tp2"),
        pytest.param(Mesh(pipeline=4), id="pp4"),
    ],
)
def test_survivors_of_a_killed_process_know_at_once_and_train_again(
    mesh: Mesh, victim: int, tmp_path: Path
) -> None:
    text = write_text(tmp_path / "data")
    run = make_run(text, model__layers=4, training__total_steps=100_000)
    workers = start(mesh.size, run, scratch=tmp_path / "scratch")
    try:
        train_together(workers, mesh=mesh)
        workers[victim].wait_for_step(3)
        killed_at = time.monotonic()
        workers[victim].kill()
        survivors = [worker for rank, worker in enumerate(workers) if rank != victim]
        lost = results(survivors)
        seconds = time.monotonic() - killed_at
        _log.info("%s: all survivors knew after %.2f s", mesh, seconds)
        train_together(survivors, mesh=Mesh(dataShard=3), generation=2)
        survivors[0].wait_for_step(2)
        survivors[0].ask("Stop")
        again = results(survivors)
    finally:
        for worker in workers:
            worker.kill()

    assert seconds < DEADLINE_S
    assert [result.error for result in lost] == ["GroupLostError"] * 3
    for result in lost:
        said = _MESSAGE.fullmatch(result.message)
        assert said, result.message
        next_step = int(said[2]) + (1 if said[1] else 0)
        assert next_step == result.progress[-1].step + 1
    assert [(result.outcome, result.message) for result in again] == [("Stopped", "")] * 3

"""Whether a run on a mesh is the run of one process: on real processes, to rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.trainer.workers import results, start, train_together

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from modelscaling.configuration import RunConfiguration
    from modelscaling.mesh import Mesh
    from tests.trainer.workers import Result


def train_on(mesh: Mesh, run: RunConfiguration, scratch: Path, **options: Any) -> list[Result]:
    """Return what each process of a mesh says of a run; `options` are those of `start`."""
    workers = start(mesh.size, run, scratch=scratch, **options)
    try:
        train_together(workers, mesh=mesh)
        return results(workers)
    finally:
        for worker in workers:
            worker.kill()


def assert_trained_as_alone(
    together: Sequence[Result],
    alone: Result,
    mesh: Mesh,
    *,
    steps: int,
    loss_within: float,
    norm_within: float = 1e-3,
) -> None:
    """Every process did all the steps, on the same samples, with the losses (nats) and gradient
    norms (relative) of one alone.
    """
    assert [(result.outcome, result.message) for result in together] == [
        ("Complete", "")
    ] * mesh.size
    assert len(alone.losses) == steps
    for result in together:
        assert alone.losses == pytest.approx(result.losses, abs=loss_within)
        assert alone.gradient_norms == pytest.approx(result.gradient_norms, rel=norm_within)
        assert alone.digests == result.digests

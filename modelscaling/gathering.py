"""Whether sharded weights stay gathered from a block's forward to its backward pass: one answer for
the planner and the trainer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelscaling.mesh import Mesh
    from modelscaling.shape import ModelShape

SMALL_BYTES = 1 << 30
"""Gathered weights of so little are worth their memory: they save one gathering of three."""


def keeps_gathered(shape: ModelShape, mesh: Mesh, *, compute_bytes: int) -> bool:
    """Whether weights in a compute type of so many bytes stay.

    In a pipeline they do, as torch's stages keep them between micro batches.
    """
    whole = compute_bytes * shape.parameters() // mesh.tensor
    return mesh.pipeline > 1 or whole <= SMALL_BYTES

"""What of each global batch a process computes, and how much of it at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelscaling.micro_batch import micro_batch_size
from modelscaling_trainer.errors import ConfigurationError
from modelscaling_trainer.parallel.context import positions

if TYPE_CHECKING:
    import torch

    from modelscaling.configuration import RunConfiguration
    from modelscaling.mesh import Mesh
    from modelscaling_trainer.group import Group


def samples_at_once(configuration: RunConfiguration, mesh: Mesh) -> int:
    """Return how many samples a process of a mesh computes at once.

    Raises:
        ConfigurationError: the global batch cannot be cut for this mesh.
    """
    training, parts = configuration.training, mesh.data_parallel
    if training.global_batch_size % parts:
        raise ConfigurationError(
            "InvalidBatch",
            f"training.globalBatchSize={training.global_batch_size} is not divisible by the "
            f"{parts} parts of the mesh {mesh}; change either",
        )
    try:
        return micro_batch_size(
            training.global_batch_size // parts,
            context_length=configuration.model.context_length,
            mesh=mesh,
            declared=training.micro_batch_size,
        )
    except ValueError as error:
        raise ConfigurationError("InvalidMicroBatch", str(error)) from None


def token_positions(group: Group, context_length: int) -> torch.Tensor | None:
    """Return which tokens of each sample are computed here; None is all."""
    parts = group.mesh.context
    if parts == 1:
        return None
    return positions(context_length, parts, group.mesh.coordinates(group.rank)["context"])

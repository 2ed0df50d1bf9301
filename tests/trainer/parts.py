"""The whole model in one process, as a run has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelscaling.growth.lineage import NO_LINEAGE, Lineage
from modelscaling.mesh import Mesh
from modelscaling_trainer.model_part import ModelPart
from modelscaling_trainer.optimizer import AdamW
from modelscaling_trainer.state import TrainingState

if TYPE_CHECKING:
    from modelscaling.configuration import RunConfiguration

_CPU = torch.device("cpu")


def make_part(configuration: RunConfiguration) -> ModelPart:
    """Return the model with memory for weights that are not set yet."""
    part = ModelPart(configuration, mesh=Mesh(), rank=0, compute_dtype=torch.float32, device=_CPU)
    part.spread(None)
    return part


def make_state(configuration: RunConfiguration, *, lineage: Lineage = NO_LINEAGE) -> TrainingState:
    """Return a state that holds nothing yet."""
    part = make_part(configuration)
    weights = {name: shard.tensor for name, shard in part.weights.items()}
    return TrainingState(part, AdamW(weights, configuration.optimizer), lineage=lineage)

"""This process' part of the model on a mesh: its pipeline stages, their weights, and which part of
which whole weight each is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from modelscaling.gathering import keeps_gathered
from modelscaling.layout import layout, process_stages
from modelscaling_trainer.gradient import Gradient
from modelscaling_trainer.model.decoder import Decoder
from modelscaling_trainer.model.recompute import recompute
from modelscaling_trainer.shard import Shard, local

if TYPE_CHECKING:
    from torch import nn

    from modelscaling.configuration import RunConfiguration
    from modelscaling.mesh import Mesh
    from modelscaling_trainer.gradient_store import GradientStore
    from modelscaling_trainer.parallel.meshes import AxisGroups


class ModelPart:
    """Stages that hold memory for their weights, which are not set yet."""

    def __init__(
        self,
        configuration: RunConfiguration,
        *,
        mesh: Mesh,
        rank: int,
        compute_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Lay the stages of `rank` out; those that will be cut take no memory yet."""
        self.shape = configuration.model
        self.mesh = mesh
        self.rank = rank
        self.device = device
        with torch.device("meta") if mesh.is_sharded else device:
            self.stages = [
                Decoder(
                    configuration.model,
                    compute_dtype=compute_dtype,
                    stage=stage,
                    stages=mesh.stages,
                    recompute=recompute(configuration.training.activation_checkpointing),
                )
                for stage in process_stages(mesh, rank)
            ]

    def spread(self, groups: AxisGroups | None) -> None:
        """Cut the stages over the mesh, and give what is left of them memory; whole ones need no
        groups.
        """
        if self.mesh.is_sharded:
            assert groups is not None, f"the mesh {self.mesh} cuts weights over its groups"
            self._cut(groups)
        else:
            self._keep_all_but_adapters()
        self.parameters: dict[str, nn.Parameter] = {
            name: parameter for stage in self.stages for name, parameter in stage.weights().items()
        }
        self.gradient: GradientStore = self._make_gradient()
        self.sit_at(self.mesh, self.rank)

    def _cut(self, groups: AxisGroups) -> None:
        from modelscaling_trainer.parallel.context import cut_context  # noqa: PLC0415
        from modelscaling_trainer.parallel.sharding import shard_weights  # noqa: PLC0415

        compute_bytes = self.stages[0].compute_dtype.itemsize
        is_kept = keeps_gathered(self.shape, self.mesh, compute_bytes=compute_bytes)
        for stage in self.stages:
            if self.mesh.tensor > 1:
                from modelscaling_trainer.parallel.tensor import cut_products  # noqa: PLC0415

                cut_products(stage, groups.tensor)
        self._keep_all_but_adapters()
        for stage in self.stages:
            shard_weights(stage, groups.shards, keeps_gathered=is_kept)
            stage.to_empty(device=self.device)
            stage.tie()  # which to_empty has undone
            stage.set_rotary_tables()
            if self.mesh.context > 1:
                cut_context(stage, groups.context)

    def _keep_all_but_adapters(self) -> None:
        """Train the adapters only, where the shape has some; what cuts a product makes its weights
        anew, and what shards it looks at which of them are trained.
        """
        if self.shape.lora is not None:
            for stage in self.stages:
                stage.keep_all_but_adapters()

    def sit_at(self, mesh: Mesh, rank: int) -> None:
        """Take a place on a mesh where the same weights are held, by other processes perhaps."""
        self.mesh, self.rank = mesh, rank
        pieces = layout(self.shape, mesh, rank)
        self.weights = {
            name: Shard(local(parameter.detach()), pieces[name])
            for name, parameter in self.parameters.items()
        }

    def _make_gradient(self) -> GradientStore:
        trained = {name: each for name, each in self.parameters.items() if each.requires_grad}
        if not self.mesh.is_sharded:
            return Gradient(trained)
        from modelscaling_trainer.parallel.sharded_gradient import (  # noqa: PLC0415
            ShardedGradient,
        )

        return ShardedGradient(self.stages, trained)

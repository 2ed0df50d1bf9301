"""The process groups of a mesh's axes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from itertools import product
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from modelscaling.mesh import AXES
from modelscaling_trainer.process_group import COLLECTIVE_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from modelscaling.mesh import Mesh

_PIPELINE, _REPLICATE, _SHARD, _TENSOR = "pipeline", "dataReplicate", "weightShards", "tensor"


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisGroups:
    """The process groups that this process is in; they end with the default one."""

    pipeline: dist.ProcessGroup
    """Those that hold the stages, in their order."""
    ends: dist.ProcessGroup | None
    """The first and the last stage's, which share a tied table; None for the stages between, and
    without a pipeline."""
    replicate: dist.ProcessGroup
    """Those that hold copies of the same weights."""
    context: dist.ProcessGroup
    """Those that share each sample."""
    weights: DeviceMesh | None
    """What torch's sharding works on; None where weights are whole."""

    @property
    def tensor(self) -> DeviceMesh:
        """Those that share each matrix product."""
        assert self.weights is not None
        return self.weights[_TENSOR]

    @property
    def shards(self) -> DeviceMesh:
        """Those that share the weights; of two dimensions, with the copies as the outer one."""
        assert self.weights is not None
        if self.replicate.size() > 1:
            return self.weights[_REPLICATE, _SHARD]
        return self.weights[_SHARD]


def axis_groups(mesh: Mesh, *, rank: int, device: torch.device) -> AxisGroups:
    """Make the groups of a mesh; all ranks of the default group do it at the same time.

    Raises:
        RuntimeError: a peer is gone.
    """
    pipeline = _own_group(mesh, rank, "pipeline")
    replicate = _own_group(mesh, rank, "dataReplicate")
    weights = None
    if mesh.is_sharded:
        shards = _own_group(mesh, rank, "dataShard", "context")
        sizes = (mesh.pipeline, mesh.dataReplicate, mesh.weight_shards, mesh.tensor)
        weights = DeviceMesh.from_group(
            [pipeline, replicate, shards, _own_group(mesh, rank, "tensor")],
            device.type,
            mesh=torch.arange(mesh.size).view(sizes),
            mesh_dim_names=(_PIPELINE, _REPLICATE, _SHARD, _TENSOR),
        )
    return AxisGroups(
        pipeline=pipeline,
        ends=_ends(mesh, rank),
        replicate=replicate,
        context=_own_group(mesh, rank, "context"),
        weights=weights,
    )


def _own_group(mesh: Mesh, rank: int, *axes: str) -> dist.ProcessGroup:
    """Make the groups of ranks that differ on these axes only; return the own one."""
    own = _make(_along(mesh, axes), rank)
    assert own is not None
    return own


def _ends(mesh: Mesh, rank: int) -> dist.ProcessGroup | None:
    if mesh.pipeline == 1:
        return None
    return _make(((ranks[0], ranks[-1]) for ranks in _along(mesh, ("pipeline",))), rank)


def _make(sets: Iterable[Sequence[int]], rank: int) -> dist.ProcessGroup | None:
    """Make a group of each set of ranks; return the one that `rank` is in."""
    own = None
    for ranks in sets:
        # The timeout is said explicitly: torch's default is half an hour.
        group = dist.new_group(list(ranks), timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S))
        if rank in ranks:
            assert isinstance(group, dist.ProcessGroup)
            own = group
    return own


def _along(mesh: Mesh, axes: tuple[str, ...]) -> Iterator[list[int]]:
    """Yield the ranks, in ascending order, of each set that differs on these axes only."""
    sizes = mesh.sizes()
    fixed = [axis for axis in AXES if axis not in axes]
    for others in product(*(range(sizes[axis]) for axis in fixed)):
        place = dict(zip(fixed, others, strict=True))
        yield [
            mesh.rank({**place, **dict(zip(axes, along, strict=True))})
            for along in product(*(range(sizes[axis]) for axis in axes))
        ]

"""The process groups of a mesh's axes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from itertools import count, product
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from modelscaling.mesh import AXES
from modelscaling_trainer.process_group import COLLECTIVE_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelscaling.mesh import Mesh

_PIPELINE, _REPLICATE, _SHARD, _TENSOR = "pipeline", "dataReplicate", "weightShards", "tensor"
_WEIGHTS = (_PIPELINE, _REPLICATE, _SHARD, _TENSOR)
"""The dimensions of the mesh that torch's sharding works on."""
_MEMBERS, _ENDS, _CONTEXT = "members", "ends", "context"
_numbers = count()
"""Of the meshes that this process has been in, so that no two have the same names.

DTensor's caches, which outlive groups, answer with the first mesh that equals the one asked about,
and to torch meshes of the same names and ranks are equal: that of a former group would be used,
with this process' place in it and the names of groups that are no more.
"""
_former: list[DeviceMesh] = []
"""The last of them, which those caches keep for good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisGroups:
    """The process groups that this process is in; they end with the default one."""

    members: dist.ProcessGroup
    """All that train: the default group without those that leave."""
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
        return self._weights_along(_TENSOR)

    @property
    def shards(self) -> DeviceMesh:
        """Those that share the weights; of two dimensions, with the copies as the outer one."""
        if self.replicate.size() > 1:
            return self._weights_along(_REPLICATE, _SHARD)
        return self._weights_along(_SHARD)

    def _weights_along(self, *axes: str) -> DeviceMesh:
        assert self.weights is not None
        assert self.weights.mesh_dim_names is not None
        unique = dict(zip(_WEIGHTS, self.weights.mesh_dim_names, strict=True))
        return self.weights[tuple(unique[axis] for axis in axes)]


def axis_groups(
    mesh: Mesh, *, rank: int, device: torch.device, everybody: dist.ProcessGroup
) -> AxisGroups:
    """Make the groups of a mesh; all ranks of `everybody`, torch's default group, do so at once,
    those that the mesh has no place for by `make_room`.

    Raises:
        RuntimeError: a peer is gone.
    """
    _let_go_of_former()
    own = {name: _make(sets, rank, everybody) for name, sets in _sets(mesh)}
    weights = None
    if mesh.is_sharded:
        sizes = (mesh.pipeline, mesh.dataReplicate, mesh.weight_shards, mesh.tensor)
        number = next(_numbers)
        weights = DeviceMesh.from_group(
            [_present(own[name]) for name in _WEIGHTS],
            device.type,
            mesh=torch.arange(mesh.size).view(sizes),
            mesh_dim_names=tuple(f"{name}-{number}" for name in _WEIGHTS),
        )
        _former.append(weights)
    return AxisGroups(
        members=_present(own[_MEMBERS]),
        pipeline=_present(own[_PIPELINE]),
        ends=own.get(_ENDS),
        replicate=_present(own[_REPLICATE]),
        context=_present(own[_CONTEXT]),
        weights=weights,
    )


def make_room(mesh: Mesh, everybody: dist.ProcessGroup) -> None:
    """Do a leaving process' part while the others make the groups of their mesh.

    Raises:
        RuntimeError: a peer is gone.
    """
    for _, sets in _sets(mesh):
        _make(sets, everybody.rank(), everybody)


def _let_go_of_former() -> None:
    """Drop what a mesh that is kept has of its group: connections and threads."""
    while _former:
        _former.pop()._pg_registry.clear()  # noqa: SLF001


def _sets(mesh: Mesh) -> Iterator[tuple[str, list[list[int]]]]:
    """Yield the sets of ranks that are made groups, each rank being in one of a name at most; the
    same on all ranks.
    """
    yield _MEMBERS, [list(range(mesh.size))]
    pipelines = _along(mesh, ("pipeline",))
    yield _PIPELINE, pipelines
    if mesh.pipeline > 1:
        yield _ENDS, [[ranks[0], ranks[-1]] for ranks in pipelines]
    yield _REPLICATE, _along(mesh, ("dataReplicate",))
    yield _CONTEXT, _along(mesh, ("context",))
    if mesh.is_sharded:
        yield _SHARD, _along(mesh, ("dataShard", "context"))
        yield _TENSOR, _along(mesh, ("tensor",))


def _make(
    sets: list[list[int]], rank: int, everybody: dist.ProcessGroup
) -> dist.ProcessGroup | None:
    """Make a group of each set of ranks; return the one that `rank` is in."""
    if len(sets[0]) == everybody.size():
        return everybody
    own = None
    for ranks in sets:
        # The timeout is said explicitly: torch's default is half an hour.
        group = dist.new_group(ranks, timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S))
        if rank in ranks:
            assert isinstance(group, dist.ProcessGroup)
            own = group
    return own


def _present(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    assert group is not None
    return group


def _along(mesh: Mesh, axes: tuple[str, ...]) -> list[list[int]]:
    """Return the ranks, in ascending order, of each set that differs on these axes only."""
    sizes = mesh.sizes()
    fixed = [axis for axis in AXES if axis not in axes]
    sets = []
    for others in product(*(range(sizes[axis]) for axis in fixed)):
        place = dict(zip(fixed, others, strict=True))
        sets.append(
            [
                mesh.rank({**place, **dict(zip(axes, along, strict=True))})
                for along in product(*(range(sizes[axis]) for axis in axes))
            ]
        )
    return sets

"""What modelscaling.layout says of a mesh, against what torch holds there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch.distributed.tensor import DTensor

from modelscaling.layout import Region, layout
from modelscaling.mesh import Mesh
from modelscaling_trainer.model.initial_weights import set_initial_weights
from modelscaling_trainer.model_part import ModelPart
from modelscaling_trainer.parallel.meshes import axis_groups
from tests.trainer.decoders import make_decoder
from tests.trainer.ranks import everybody, on_every_rank
from tests.trainer.runs import make_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from modelscaling.configuration import RunConfiguration
    from modelscaling_trainer.parallel.meshes import AxisGroups

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

SEED = 3
CPU = torch.device("cpu")

MESHES = [
    pytest.param(Mesh(dataReplicate=2), id="dp2"),
    pytest.param(Mesh(dataShard=3), id="fsdp3, which divides no dimension"),
    pytest.param(Mesh(tensor=2), id="tp2"),
    pytest.param(Mesh(tensor=4), id="tp4 with 2 key and value heads"),
    pytest.param(Mesh(pipeline=3), id="pp3 of 4 layers"),
    pytest.param(Mesh(pipeline=2, stagesPerProcess=2), id="pp2 interleaved"),
    pytest.param(Mesh(dataReplicate=2, dataShard=2), id="hsdp2x2"),
    pytest.param(Mesh(dataShard=2, context=2), id="fsdp2 x cp2"),
    pytest.param(Mesh(dataShard=2, tensor=2), id="fsdp2 x tp2"),
    pytest.param(Mesh(pipeline=2, tensor=2), id="pp2 x tp2"),
]


MODELS: list[dict[str, bool]] = [
    {"model__tied_embeddings": True},
    {"model__tied_embeddings": False},
    {"model__qkv_bias": True},
    {"model__qk_norm": True, "model__norm_after": True},
]


def _differing(rank: int, mesh: Mesh) -> list[str]:
    torch.manual_seed(rank)
    groups = axis_groups(mesh, rank=rank, device=CPU, everybody=everybody())
    runs = [make_run("unused", model__layers=4, **changes) for changes in MODELS]
    return [what for run in runs for what in _differing_weights(run, mesh, rank, groups)]


def _differing_weights(
    run: RunConfiguration, mesh: Mesh, rank: int, groups: AxisGroups
) -> Iterator[str]:
    """Fill this rank's shards, have torch put each weight together; yield where that differs from
    the whole model, or what is held from the layout.
    """
    part = ModelPart(run, mesh=mesh, rank=rank, compute_dtype=torch.float32, device=CPU)
    part.spread(groups)
    set_initial_weights(part.weights, seed=SEED, layers=run.model.layers)
    whole = make_decoder(run.model, seed=SEED).weights()
    for name in layout(run.model, mesh, rank).keys() ^ part.weights.keys():
        yield f"{name} is held or laid out, and not both"
    for name, parameter in part.parameters.items():
        tensor = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        if not torch.equal(whole[name], tensor):
            yield f"{name} is another one"
        shard = part.weights[name]
        everything = Region((0,) * len(shard.piece.shape), shard.piece.shape)
        if not torch.equal(whole[name][shard.piece.region.within(everything)], shard.tensor):
            yield f"{name} holds another region"


@pytest.mark.parametrize("mesh", MESHES)
def test_torch_holds_what_the_layout_says_of_each_kind_of_model(mesh: Mesh, tmp_path: Path) -> None:
    differing = on_every_rank(_differing, mesh.size, mesh, meeting=tmp_path / "meeting")

    assert differing == [[]] * mesh.size

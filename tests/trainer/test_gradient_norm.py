from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from modelscaling.layout import Region, layout, weights
from modelscaling.mesh import Mesh
from modelscaling_trainer.gradient_norm import clip, share_of_square
from modelscaling_trainer.shard import Shard
from tests.shared.workloads import meshes, shapes

if TYPE_CHECKING:
    from modelscaling.shape import ModelShape


@settings(deadline=None)
@given(shape=shapes(), mesh=meshes())
def test_the_shares_of_all_processes_add_up_to_the_whole_norm(
    shape: ModelShape, mesh: Mesh
) -> None:
    mesh = mesh if mesh.stages <= shape.layers else Mesh(dataShard=mesh.size)
    draw = torch.Generator().manual_seed(0)
    whole = {name: torch.randn(size, generator=draw) for name, size in weights(shape).items()}
    total = 0.0
    for rank in range(mesh.size):
        held = {}
        for name, piece in layout(shape, mesh, rank).items():
            everything = Region((0,) * len(piece.shape), piece.shape)
            held[name] = Shard(whole[name][piece.region.within(everything)], piece)
        gradient = {name: shard.tensor for name, shard in held.items()}
        total += share_of_square(gradient, held)

    expected = sum(tensor.double().square().sum().item() for tensor in whole.values())
    assert total == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("largest", [0.0, 0.5, 1e9], ids=["off", "clipped", "small enough"])
def test_clipping_is_that_of_torch(largest: float) -> None:
    draw = torch.Generator().manual_seed(0)
    ours = {name: torch.randn(5, 3, generator=draw) for name in "ab"}
    theirs = [nn.Parameter(torch.zeros(5, 3)) for _ in ours]
    for parameter, tensor in zip(theirs, ours.values(), strict=True):
        parameter.grad = tensor.clone()
    norm = nn.utils.clip_grad_norm_(theirs, largest or float("inf")).item()

    clip(ours, norm=norm, largest_norm=largest)

    for parameter, tensor in zip(theirs, ours.values(), strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, tensor, rtol=1e-6)
    clipped = sqrt(sum(tensor.square().sum().item() for tensor in ours.values()))
    assert clipped == pytest.approx(min(norm, largest or norm), rel=1e-5)


def test_a_process_whose_weights_are_all_frozen_has_no_share_and_nothing_to_clip() -> None:
    assert share_of_square({}, {}) == 0.0
    clip({}, norm=2.0, largest_norm=1.0)

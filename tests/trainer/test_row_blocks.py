from __future__ import annotations

import pytest
import torch

from modelscaling.layout import Region
from modelscaling_trainer.row_blocks import row_blocks


@pytest.mark.parametrize("shape", [(7,), (7, 3), (7, 3, 2), (1, 50), (4, 6)])
@pytest.mark.parametrize("most", [1, 12, 1000])
def test_blocks_are_the_tensor_in_order(shape: tuple[int, ...], most: int) -> None:
    tensor = torch.arange(torch.Size(shape).numel()).view(shape)
    whole = Region((0,) * len(shape), shape)

    blocks = [tensor[region.within(whole)] for region in row_blocks(shape, most_elements=most)]

    assert torch.equal(torch.cat(blocks), tensor)
    assert all(block.numel() <= most or len(block) == 1 for block in blocks)
    assert len(blocks) == 1 or most < tensor.numel()

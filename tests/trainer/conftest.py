from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def group_of_one() -> Iterator[None]:
    """Have this process be a whole group, without a network."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()

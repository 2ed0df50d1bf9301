from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import HashStore

from modelscaling_trainer.gradient import Gradient

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2, bias=False))


def grads(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("bucket_bytes", [1, 64, 1 << 20], ids=["each alone", "some", "one"])
@pytest.mark.usefixtures("group_of_one")
def test_the_sum_over_micro_batches_and_one_rank_is_the_plain_gradient(bucket_bytes: int) -> None:
    x = torch.randn(6, 4)
    plain, ours = make_model(), make_model()
    plain(x).square().sum().backward()
    gradient = Gradient(ours.parameters(), bucket_bytes=bucket_bytes)
    for _ in range(2):  # a second step starts from 0
        gradient.clear()
        ours(x[:2]).square().sum().backward()
        gradient.exchange_in_next_backward()
        ours(x[2:]).square().sum().backward()
        gradient.finish_exchange()

        for expected, actual in zip(grads(plain), grads(ours), strict=True):
            assert torch.allclose(expected, actual, rtol=1e-5)


def test_only_the_last_micro_batch_is_exchanged() -> None:
    model = make_model()
    gradient = Gradient(model.parameters())
    gradient.clear()

    # There is no process group: an exchange would fail.
    model(torch.randn(2, 4)).sum().backward()


@pytest.mark.parametrize("largest", [0.0, 0.5, 1e9], ids=["off", "clipped", "small enough"])
def test_clipping_is_that_of_torch(largest: float) -> None:
    x = torch.randn(6, 4)
    plain, ours = make_model(), make_model()
    gradient = Gradient(ours.parameters())
    for model in (plain, ours):
        torch.autograd.backward(100 * model(x).square().sum())
    reference = nn.utils.clip_grad_norm_(plain.parameters(), largest or float("inf"))
    norm = gradient.clip(largest)

    assert norm == pytest.approx(reference.item(), rel=1e-5)
    for expected, actual in zip(grads(plain), grads(ours), strict=True):
        assert torch.allclose(expected, actual, rtol=1e-5)


@pytest.mark.usefixtures("group_of_one")
def test_a_weight_that_is_used_twice_is_exchanged_once_it_is_whole() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(3, 3))
    gradient = Gradient([weight])
    gradient.clear()
    gradient.exchange_in_next_backward()
    torch.autograd.backward((weight @ weight).sum())
    gradient.finish_exchange()
    ones = torch.ones(3, 3)
    expected = ones @ weight.T + weight.T @ ones

    assert weight.grad is not None
    assert torch.allclose(expected.detach(), weight.grad)

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from modelscaling_trainer.gradient import Gradient, gradient_of


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2, bias=False))


def make_gradient(model: nn.Module, *, bucket_bytes: int = 1 << 20) -> Gradient:
    gradient = Gradient(dict(model.named_parameters()), bucket_bytes=bucket_bytes)
    gradient.join(dist.group.WORLD)  # type: ignore[arg-type]
    return gradient


def plain_gradient(x: torch.Tensor) -> dict[str, torch.Tensor]:
    model = make_model()
    model(x).square().sum().backward()
    return {name: gradient_of(parameter) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("bucket_bytes", [1, 64, 1 << 20], ids=["each alone", "some", "one"])
@pytest.mark.usefixtures("group_of_one")
def test_the_sum_over_micro_batches_and_one_rank_is_the_plain_gradient(bucket_bytes: int) -> None:
    x = torch.randn(6, 4)
    expected = plain_gradient(x)
    model = make_model()
    gradient = make_gradient(model, bucket_bytes=bucket_bytes)
    for _ in range(2):  # a second step starts from 0
        gradient.clear()
        for part, is_last in ((x[:2], False), (x[2:], True)):
            gradient.before_backward(is_last=is_last)
            model(part).square().sum().backward()
        gradient.finish()

        assert gradient.tensors().keys() == expected.keys()
        for name, tensor in gradient.tensors().items():
            assert torch.allclose(expected[name], tensor, rtol=1e-5), name
        square = sum(tensor.square().sum().item() for tensor in expected.values())
        assert gradient.own_square == pytest.approx(square, rel=1e-5)


@pytest.mark.usefixtures("group_of_one")
def test_after_a_pipelines_schedule_the_gradient_is_summed_whole() -> None:
    x = torch.randn(6, 4)
    expected = plain_gradient(x)
    model = make_model()
    gradient = make_gradient(model, bucket_bytes=64)
    gradient.clear()
    for part in x.chunk(3):
        model(part).square().sum().backward()
    gradient.after_schedule()
    gradient.finish()

    for name, tensor in gradient.tensors().items():
        assert torch.allclose(expected[name], tensor, rtol=1e-5), name


def test_only_the_last_micro_batch_is_exchanged() -> None:
    model = make_model()
    gradient = Gradient(dict(model.named_parameters()))
    gradient.clear()
    gradient.before_backward(is_last=False)

    # There is no process group: an exchange would fail.
    model(torch.randn(2, 4)).sum().backward()

    assert any(tensor.any() for tensor in gradient.tensors().values())


@pytest.mark.usefixtures("group_of_one")
def test_a_weight_that_is_used_twice_is_exchanged_once_it_is_whole() -> None:
    torch.manual_seed(0)
    model = nn.ParameterDict({"weight": nn.Parameter(torch.randn(3, 3))})
    weight = model["weight"]
    gradient = make_gradient(model)
    gradient.clear()
    gradient.before_backward(is_last=True)
    torch.autograd.backward((weight @ weight).sum())
    gradient.finish()
    ones = torch.ones(3, 3)
    expected = (ones @ weight.T + weight.T @ ones).detach()

    assert torch.allclose(expected, gradient.tensors()["weight"])


@pytest.mark.usefixtures("group_of_one")
def test_a_step_that_was_not_finished_leaves_nothing_behind() -> None:
    x = torch.randn(6, 4)
    expected = plain_gradient(x)
    model = make_model()
    gradient = make_gradient(model)
    gradient.before_backward(is_last=True)
    model(torch.randn(3, 4)).sum().backward()

    gradient.clear()
    gradient.before_backward(is_last=True)
    model(x).square().sum().backward()
    gradient.finish()

    for name, tensor in gradient.tensors().items():
        assert torch.allclose(expected[name], tensor, rtol=1e-5), name

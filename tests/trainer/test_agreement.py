from __future__ import annotations

from math import inf, nan
from typing import TYPE_CHECKING

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from modelscaling_trainer import agreement
from modelscaling_trainer.agreement import StepReport, agree
from modelscaling_trainer.request import Request

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


@pytest.fixture
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def make_report(
    *, loss_sum: float = 30.0, batch_sum: int = (1 << 64) - 2, requests: tuple[Request, ...] = ()
) -> StepReport:
    return StepReport(
        loss_sum=loss_sum,
        tokens=10,
        batch_sum=batch_sum,
        requests=set(requests),
        own_square=2.0,
        step_seconds=0.5,
        wait_seconds=0.125,
        checkpoint_step=200,
    )


@pytest.mark.parametrize("request_", [*Request])
@pytest.mark.usefixtures("group_of_one")
def test_a_rank_alone_agrees_with_itself(request_: Request) -> None:
    report = make_report(requests=(request_,))

    assert report == agree(report)
    assert report.loss == 3.0
    assert report.scaling_efficiency == 0.75


def test_the_reports_of_many_ranks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def three_ranks(vector: torch.Tensor) -> torch.Tensor:
        return vector * 3

    monkeypatch.setattr(agreement, "all_reduce", three_ranks)
    agreed = agree(make_report(requests=(Request.STOP,)))

    assert (agreed.loss_sum, agreed.tokens, agreed.loss) == (90.0, 30, 3.0)
    assert agreed.batch_sum == 3 * ((1 << 64) - 2) % (1 << 64)
    assert agreed.requests == {Request.STOP}


@pytest.mark.parametrize("loss_sum", [nan, inf, -inf])
@pytest.mark.usefixtures("group_of_one")
def test_a_loss_that_is_not_finite_shows(loss_sum: float) -> None:
    assert not agree(make_report(loss_sum=loss_sum)).is_finite

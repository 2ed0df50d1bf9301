from __future__ import annotations

from math import inf, nan
from typing import TYPE_CHECKING, Any

import pytest

from modelscaling_trainer import agreement
from modelscaling_trainer.agreement import StepReport, agree
from modelscaling_trainer.request import Request
from tests.trainer.ranks import everybody

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist


def make_report(**changes: Any) -> StepReport:
    fields: dict[str, Any] = {
        "loss_sum": 30.0,
        "tokens": 10,
        "batch_sum": (1 << 64) - 2,
        "requests": set(),
        "gradient_square": 4.0,
        "own_square": 2.0,
        "step_seconds": 0.5,
        "wait_seconds": 0.125,
        "busy_seconds": 0.25,
        "snapshot_seconds": 0.0625,
        "checkpoint_step": 200,
    }
    return StepReport(**fields | changes)


@pytest.mark.parametrize("request_", [*Request])
@pytest.mark.usefixtures("group_of_one")
def test_a_rank_alone_agrees_with_itself(request_: Request) -> None:
    report = make_report(requests={request_})

    assert report == agree(report, everybody())
    assert report.loss == 3.0
    assert report.gradient_norm == 2.0
    assert report.scaling_efficiency == 0.75


@pytest.mark.usefixtures("group_of_one")
def test_the_reports_of_many_ranks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def three_ranks(vector: torch.Tensor, _: dist.ProcessGroup) -> torch.Tensor:
        return vector * 3

    monkeypatch.setattr(agreement, "all_reduce", three_ranks)
    agreed = agree(make_report(requests={Request.STOP}, gradient_square=3.0), everybody())

    assert (agreed.loss_sum, agreed.tokens, agreed.loss) == (90.0, 30, 3.0)
    assert agreed.gradient_norm == 3.0
    assert (agreed.step_seconds, agreed.wait_seconds, agreed.busy_seconds) == (1.5, 0.375, 0.75)
    assert agreed.snapshot_seconds == 0.1875
    assert agreed.batch_sum == 3 * ((1 << 64) - 2) % (1 << 64)
    assert agreed.requests == {Request.STOP}


def test_the_first_step_of_a_group_has_no_efficiency_yet() -> None:
    assert make_report(step_seconds=0.0, wait_seconds=0.0).scaling_efficiency is None


@pytest.mark.parametrize("loss_sum", [nan, inf, -inf])
@pytest.mark.usefixtures("group_of_one")
def test_a_loss_that_is_not_finite_shows(loss_sum: float) -> None:
    assert not agree(make_report(loss_sum=loss_sum), everybody()).is_finite

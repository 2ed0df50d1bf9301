"""What all ranks agree on in each step: one small sum over ranks carries it.

float64 holds every part exactly: counts and 16-bit limbs below 2^53. Whatever only rank 0 knows
is 0 in the others' reports.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, sqrt
from typing import TYPE_CHECKING

import torch

from modelscaling_trainer.data.sample_digest import LIMBS, from_limbs, to_limbs
from modelscaling_trainer.process_group import all_reduce
from modelscaling_trainer.request import Request

if TYPE_CHECKING:
    from collections.abc import Collection

    import torch.distributed as dist

_REQUESTS = tuple(Request)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What a rank tells the others in a step, beside the step itself."""

    requests: Collection[Request]
    snapshot_seconds: float
    """How long its last snapshot took; 0 where none was taken."""
    checkpoint_step: int
    """The newest published checkpoint, as rank 0 knows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One rank's report of a step, or the sum of all."""

    loss_sum: float
    """Sum of the cross-entropy over the tokens, nats."""
    tokens: int
    batch_sum: int
    """Of the samples that were fed (sample_digest.py), modulo 2^64."""
    requests: Collection[Request]
    gradient_square: float
    """The rank's share of the squared norm of the whole gradient."""
    own_square: float
    """Squared norm of the rank's own gradient, before the sum; 0 where that is not known."""
    step_seconds: float
    """Wall time of the step before; 0 for the first."""
    wait_seconds: float
    """The part of it in which the rank waited for its peers."""
    busy_seconds: float
    """How long the rank worked on this step until now, without waiting for its peers."""
    snapshot_seconds: float
    """How long the rank's last snapshot took; 0 where none was taken."""
    checkpoint_step: int
    """The newest published checkpoint, as rank 0 knows it."""

    @property
    def loss(self) -> float:
        """Mean loss over the tokens, nats a token."""
        return self.loss_sum / self.tokens

    @property
    def gradient_norm(self) -> float:
        """Norm of the whole gradient."""
        return sqrt(self.gradient_square)

    @property
    def scaling_efficiency(self) -> float | None:
        """The part of the last step's time in which ranks did not wait for each other, 0 to 1;
        None where there was none.
        """
        return 1 - self.wait_seconds / self.step_seconds if self.step_seconds else None

    @property
    def is_finite(self) -> bool:
        """Whether the loss is a number."""
        return isfinite(self.loss_sum)


def agree(report: StepReport, members: dist.ProcessGroup) -> StepReport:
    """Return the sum of all members' reports; a request of any rank is a request of all.

    Raises:
        GroupLostError: a peer is gone.
    """
    vector = [
        report.loss_sum,
        report.tokens,
        report.gradient_square,
        report.own_square,
        report.step_seconds,
        report.wait_seconds,
        report.busy_seconds,
        report.snapshot_seconds,
        report.checkpoint_step,
        *to_limbs(report.batch_sum),
        *(request in report.requests for request in _REQUESTS),
    ]
    total = all_reduce(torch.tensor(vector, dtype=torch.float64), members).tolist()
    loss_sum, tokens, gradient_square, own_square, *rest = total
    step_seconds, wait_seconds, busy_seconds, snapshot_seconds, checkpoint_step, *rest = rest
    limbs, asked = rest[:LIMBS], rest[LIMBS:]
    return StepReport(
        loss_sum=loss_sum,
        tokens=int(tokens),
        batch_sum=from_limbs(limbs),
        requests={request for request, count in zip(_REQUESTS, asked, strict=True) if count},
        gradient_square=gradient_square,
        own_square=own_square,
        step_seconds=step_seconds,
        wait_seconds=wait_seconds,
        busy_seconds=busy_seconds,
        snapshot_seconds=snapshot_seconds,
        checkpoint_step=int(checkpoint_step),
    )

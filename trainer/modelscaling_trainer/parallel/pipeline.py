"""The pipeline: stages one after the other, micro batches on their way through them.

torch's schedules do it: 1F1B (Narayanan et al. 2019), and with several stages in each process
Interleaved 1F1B (Narayanan et al. 2021).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B

from modelscaling.layout import process_stages
from modelscaling_trainer.model.decoder import cross_entropy_sum

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch.distributed as dist
    from torch import Tensor

    from modelscaling.mesh import Mesh
    from modelscaling_trainer.model.decoder import Decoder


class Pipeline:
    """Computes a batch in a fixed number of micro batches of equal size."""

    def __init__(
        self,
        stages: list[Decoder],
        group: dist.ProcessGroup,
        *,
        mesh: Mesh,
        rank: int,
        micro_batches: int,
        loss_scale: float,
    ) -> None:
        """Take this process' stages, in order; all processes must make theirs alike."""
        self._has_first = stages[0].is_first
        self._has_last = stages[-1].is_last
        self._loss_scale = loss_scale
        device = stages[0].device
        parts = [
            PipelineStage(stage, index, mesh.stages, device, group=group)
            for index, stage in zip(process_stages(mesh, rank), stages, strict=True)
        ]
        self._schedule: Schedule1F1B | ScheduleInterleaved1F1B = (
            Schedule1F1B(parts[0], micro_batches, loss_fn=self._scaled_loss, scale_grads=False)
            if len(parts) == 1
            else ScheduleInterleaved1F1B(
                [*parts], micro_batches, loss_fn=self._scaled_loss, scale_grads=False
            )
        )

    def forward_backward(self, inputs: Tensor, targets: Tensor) -> float:
        """Add the gradient of a batch; return the sum of its loss, 0 where the last stage is not
        here.
        """
        return self._run(self._schedule.step, inputs, targets)

    def evaluate(self, inputs: Tensor, targets: Tensor) -> float:
        """Return the sum of a batch's loss, 0 where the last stage is not here."""
        return self._run(self._schedule.eval, inputs, targets)

    def _run(self, run: Callable[..., object], inputs: Tensor, targets: Tensor) -> float:
        losses: list[Tensor] = []
        run(
            *((inputs,) if self._has_first else ()),
            target=targets if self._has_last else None,
            losses=losses if self._has_last else None,
        )
        return sum(loss.item() for loss in losses) / self._loss_scale

    def _scaled_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy_sum(logits, targets) * self._loss_scale

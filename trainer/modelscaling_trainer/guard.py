"""Keeping the state of one group safe from the loss of a process, after each of its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelscaling_trainer.snapshot_plan import Cadence

if TYPE_CHECKING:
    import torch.distributed as dist

    from modelscaling_trainer.agreement import StepReport
    from modelscaling_trainer.snapshot_plan import Partners
    from modelscaling_trainer.snapshots import Snapshots
    from modelscaling_trainer.state import TrainingState


class Guard:
    """Takes the snapshots of a group when they are due."""

    def __init__(
        self, snapshots: Snapshots, partners: Partners | None, members: dist.ProcessGroup
    ) -> None:
        """Begin a group; without `partners` it can do without snapshots."""
        self._snapshots = snapshots
        self._partners = partners
        self._members = members
        self._cadence = Cadence()

    @property
    def snapshot_seconds(self) -> float:
        """How long the last snapshot took here; 0 where none was taken."""
        return self._snapshots.seconds

    def after_step(self, state: TrainingState, agreed: StepReport) -> None:
        """Take a snapshot if it is time; all ranks find the same.

        Raises:
            GroupLostError: a peer is gone.
        """
        if self._partners is None:
            self._snapshots.clear()
            return
        ranks = self._members.size()
        self._cadence.add_step(
            step_seconds=agreed.step_seconds / ranks, cost_seconds=agreed.snapshot_seconds / ranks
        )
        if self._cadence.is_due:
            self._snapshots.take(state, self._partners, self._members)
            self._cadence.restart()

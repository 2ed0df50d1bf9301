"""Keeping the state of one group safe from the loss of a process, after each of its steps."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from modelscaling_trainer.errors import GroupLostError
from modelscaling_trainer.host_memory import free_bytes
from modelscaling_trainer.process_group import all_gather
from modelscaling_trainer.snapshot_plan import Cadence

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch.distributed as dist

    from modelscaling_trainer.agreement import StepReport
    from modelscaling_trainer.snapshot_plan import Partners
    from modelscaling_trainer.snapshots import Snapshots
    from modelscaling_trainer.state import TrainingState

_log = logging.getLogger(__name__)

_SHARE_OF_FREE = 0.5
"""Snapshots take no more of the memory that is free after the first step."""


class Guard:
    """Takes the snapshots of a group when they are due."""

    def __init__(
        self,
        snapshots: Snapshots,
        partners: Partners | None,
        members: dist.ProcessGroup,
        *,
        pod_processes: int,
        free_bytes: Callable[[], int | None] = free_bytes,
    ) -> None:
        """Begin a group; without `partners` it can do without snapshots. `pod_processes` share
        what `free_bytes` finds.
        """
        self._snapshots = snapshots
        self._partners = partners
        self._members = members
        self._pod_processes = pod_processes
        self._free_bytes = free_bytes
        self._cadence: Cadence | None = None

    @property
    def snapshot_seconds(self) -> float:
        """How long the last snapshot took here; 0 where none was taken."""
        return self._snapshots.seconds

    def after_step(self, state: TrainingState, agreed: StepReport) -> None:
        """Take a snapshot if it is time; all ranks find the same.

        Raises:
            GroupLostError: a peer is gone.
        """
        try:
            self._after_step(state, agreed)
        except GroupLostError as error:
            raise GroupLostError(f"after step {state.step}: {error.message}") from error

    def _after_step(self, state: TrainingState, agreed: StepReport) -> None:
        if self._cadence is None and self._partners is not None:
            self._begin(state, self._partners)
        if self._cadence is None or self._partners is None:
            self._snapshots.clear()
            return
        ranks = self._members.size()
        self._cadence.add_step(
            step_seconds=agreed.step_seconds / ranks, cost_seconds=agreed.snapshot_seconds / ranks
        )
        if self._cadence.is_due:
            self._snapshots.take(state, self._partners, self._members)
            self._cadence.restart()

    def _begin(self, state: TrainingState, partners: Partners) -> None:
        """Begin to take snapshots, unless some rank has no memory for them."""
        needed = self._snapshots.bytes_needed(state, partners) * self._pod_processes
        free = self._free_bytes()
        has_room = free is None or needed <= _SHARE_OF_FREE * free
        if not has_room:
            _log.warning(
                "the snapshots of this pod would take %d MiB and %d MiB are free; without them, "
                "what a process holds alone is lost with it, and comes from the last checkpoint",
                needed >> 20,
                (free or 0) >> 20,
            )
        if all(answer["has_room"] for answer in all_gather({"has_room": has_room}, self._members)):
            self._cadence = Cadence()
        else:
            self._partners = None

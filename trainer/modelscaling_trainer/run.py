"""A run inside one worker process: what survives a change of group, and training in a group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelscaling_trainer.figures import ProcessFigures
from modelscaling_trainer.group import Group
from modelscaling_trainer.request import Outcome, Request, Requests

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

    from modelscaling.configuration import RunConfiguration
    from modelscaling.protocol import Progress

__all__ = ["Group", "Outcome", "ProcessFigures", "Request", "Requests", "Run"]


class Run:
    """Everything of a run that survives a change of group in this process."""

    def __init__(
        self,
        configuration: RunConfiguration,
        *,
        device: torch.device,
        scratch: Path,
        checkpoint_directory: Path | None,
        stop_at_step: int | None = None,
    ) -> None:
        """Warm up: open the data, build the model.

        `stop_at_step` ends the run early as if it were complete.

        Raises:
            ConfigurationError: the run cannot work as it is declared.
        """
        raise NotImplementedError

    def train(
        self,
        group: Group,
        *,
        requests: Requests,
        on_store_port: Callable[[int], None],
        on_progress: Callable[[Progress], None],
        on_phase: Callable[[str], None],
        on_figures: Callable[[ProcessFigures], None] | None = None,
    ) -> Outcome:
        """Form the group, take the newest state, train; the group is always left dissolved.

        `on_store_port` is called on rank 0 only. `on_progress` is called on every rank with the
        same numbers after each step. `on_phase` names what is being done, in one word: Forming,
        Loading, Training, Saving. `on_figures` gets the process' own figures after each step.

        Raises:
            ConfigurationError: the ranks do not have the same run or data, or the checkpoint is
                of another model.
            DivergedError: the loss or the gradient is not finite, on any rank.
            GroupLostError: a peer or the store is gone; `train` can be called again.
        """
        raise NotImplementedError

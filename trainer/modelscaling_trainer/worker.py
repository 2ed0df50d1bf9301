"""A worker process: one rank of a run, on one device.

The zygote forks it, with a pipe of commands from its agent and one of events to it. It lives as
long as its pod: the data is opened and the model built once, and then it trains in one group after
another.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO

import torch

from modelscaling.exit_code import ExitCode
from modelscaling_trainer.alive import told_alive
from modelscaling_trainer.checkpoint.directory import check_readable
from modelscaling_trainer.parallel import imports
from modelscaling_trainer.run import Run
from modelscaling_trainer.worker_link import AgentLink
from modelscaling_trainer.worker_loop import work

if TYPE_CHECKING:
    from modelscaling_trainer.worker_protocol import Prepare


def run(commands: BinaryIO, events: BinaryIO) -> ExitCode:
    """Be a worker until the agent ends it, or it fails; the agent learns why by an event."""
    link = AgentLink(commands=commands, events=events, on_agent_gone=_end_at_once)
    link.start()
    with told_alive(link.send):
        work(link, _build_run)
    return ExitCode.CRASHED


def _end_at_once() -> None:
    """End without clean-up: the main thread may wait for a peer that is gone as well."""
    os._exit(ExitCode.CRASHED)


def _build_run(prepare: Prepare) -> Run:
    device = (
        torch.device("cuda", prepare.local_rank)
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
    if prepare.is_newcomer and prepare.checkpoint_directory is not None:
        check_readable(prepare.checkpoint_directory)
    if prepare.mesh is not None:
        imports.import_for(prepare.mesh)
    return Run(
        prepare.configuration,
        device=device,
        scratch=prepare.scratch,
        checkpoint_directory=prepare.checkpoint_directory,
        mesh=prepare.mesh,
        stop_at_step=prepare.stop_at_step,
    )

"""A worker process: one rank of a run, on one device.

The agent starts it as `python -m modelscaling_trainer.worker EVENTS_FD`, with commands on its
standard input. It lives as long as its pod: torch is imported, the data opened and the model built
once, and then it trains in one group after another.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import torch

from modelscaling.exit_code import ExitCode
from modelscaling_trainer.log import configure_logging
from modelscaling_trainer.parallel import imports
from modelscaling_trainer.run import Run
from modelscaling_trainer.worker_link import AgentLink
from modelscaling_trainer.worker_loop import work

if TYPE_CHECKING:
    from modelscaling_trainer.worker_protocol import Prepare


def main() -> int:
    """Run the worker until its agent ends it, or it fails; the agent learns why by an event."""
    configure_logging()
    link = _open_link(events_fd=int(sys.argv[1]))
    link.start()
    work(link, _build_run)
    return ExitCode.CRASHED


def _open_link(events_fd: int) -> AgentLink:
    """Take both pipes to the agent for ourselves: no child process may hold them open."""
    commands_fd = os.dup(sys.stdin.fileno())
    null_fd = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null_fd, sys.stdin.fileno())
    os.close(null_fd)
    os.set_inheritable(events_fd, False)
    return AgentLink(
        commands=os.fdopen(commands_fd, "rb"),
        events=os.fdopen(events_fd, "wb"),
        on_agent_gone=_end_at_once,
    )


def _end_at_once() -> None:
    """End without clean-up: the main thread may wait for a peer that is gone as well."""
    os._exit(ExitCode.CRASHED)


def _build_run(prepare: Prepare) -> Run:
    device = (
        torch.device("cuda", prepare.local_rank)
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
    if prepare.mesh is not None:
        imports.import_for(prepare.mesh)
    return Run(
        prepare.configuration,
        device=device,
        scratch=prepare.scratch,
        checkpoint_directory=prepare.checkpoint_directory,
        stop_at_step=prepare.stop_at_step,
    )


if __name__ == "__main__":
    sys.exit(main())

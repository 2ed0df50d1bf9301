"""Keep programs running as they should be: start what does not, restart what is outdated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devcluster import ports, processes
from devcluster.progress import say

if TYPE_CHECKING:
    from devcluster.layout import Layout
    from devcluster.processes import Program

_READY_TIMEOUT_S = 60


def ensure(layout: Layout, program: Program) -> bool:
    """Make sure that a program runs with its present configuration; whether it was started."""
    process = processes.running(layout.home).get(program.name)
    if process and process.fingerprint == program.fingerprint():
        return False
    if process:
        say(f"restarting {program.name}: its configuration or its binary has changed")
        processes.kill([process])
    else:
        say(f"starting {program.name}")
    ports.check_free(program)
    processes.start(program, home=layout.home, log=layout.log)
    return True


def await_ready(layout: Layout, program: Program) -> None:
    """Return when a program is ready."""
    processes.await_ready(program, home=layout.home, log=layout.log, timeout_s=_READY_TIMEOUT_S)

"""A run on this machine without a cluster: the same agent and workers as in a pod.

`modelscaling train` starts it as `python -m modelscaling_trainer.local`, with a `LocalRun` as JSON
on standard input. The exit code is 0 for a run that reached its end, 1 for one that failed, and
128 + the signal's number for one that was interrupted.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from modelscaling.exit_code import ExitCode
from modelscaling.local_run import LocalRun
from modelscaling.protocol import GroupAssignment, Member
from modelscaling_trainer.agent.agent import Agent
from modelscaling_trainer.agent.fencing import Identity, Verdict
from modelscaling_trainer.agent.settings import AgentSettings
from modelscaling_trainer.checkpoint.fence import newest_claim
from modelscaling_trainer.errors import ConfigurationError
from modelscaling_trainer.local_report import LocalReport
from modelscaling_trainer.log import LEVEL_VARIABLE, configure_logging
from modelscaling_trainer.rejected_growth import read_rejected, reject_growth, write_rejected

if TYPE_CHECKING:
    from modelscaling.protocol import GrowthRejection, Progress, StoreAddress
    from modelscaling_trainer.figures import ProcessFigures
    from modelscaling_trainer.rejected_growth import RejectedGrowth

_LOOPBACK_ADDRESS = "127.0.0.1"
_GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
_MOST_BREAKS = 3
"""Where nobody else gives a run up that fails at the same step again and again."""
_STOP_TIMEOUT_S = 600.0
"""For the checkpoint of an interrupted run; a second interrupt does not wait for it."""


def main() -> int:
    """Train the run on standard input; return the process' exit code."""
    os.environ.setdefault(LEVEL_VARIABLE, "WARNING")
    configure_logging()
    run = LocalRun.model_validate_json(sys.stdin.buffer.read())
    rejected = None
    if len(run.stages) > 1 and run.output:
        run, rejected = _taken_up(run, run.output)
    try:
        return asyncio.run(LocalTraining(run, rejected).train())
    except BaseExceptionGroup as errors:
        if errors.subgroup(BrokenPipeError) is None:
            raise
        # Whoever read the lines has left, as `| head` does. What is still buffered has no reader.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


class LocalTraining:
    """One local run from its start to its end."""

    def __init__(self, run: LocalRun, rejected: RejectedGrowth | None) -> None:
        """Take the run, and the growth that it took back before it was taken up."""
        self._run = run
        self._interrupted_by: signal.Signals | None = None
        self._report = LocalReport(run, output=sys.stdout, terminal=sys.stderr)
        if rejected is not None:
            self._report.growth_rejected(run, rejected)
        self._agent = Agent(
            AgentSettings(
                identity=Identity(run_uid=run.name, index=0, processes=run.mesh.size),
                configuration=run.configuration,
                scratch=_cache_directory(),
                checkpoint_directory=run.output,
                mesh=run.mesh,
                stop_at_step=run.stop_at_step,
                shares_machine=False,
                termination_grace_s=_STOP_TIMEOUT_S,
                most_breaks=_MOST_BREAKS,
            ),
            observer=self,
            look_up_store=_never,
            environment={_GLOO_INTERFACE: _loopback_interface(), **os.environ},
        )

    async def train(self) -> int:
        """Train; return the process' exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt, number)
        self._form(1 + (newest_claim(self._run.output) if self._run.output else 0))
        exit_code = await self._agent.run()
        if self._interrupted_by and exit_code is ExitCode.INTERRUPTED:
            self._report.interrupted()
            return 128 + self._interrupted_by
        if exit_code is not ExitCode.DONE:
            self._report.failed(self._agent.facts.failure)
            return 1
        self._report.done()
        return 0

    def on_progress(self, progress: Progress) -> None:
        """Show a step, and have the model grow where that is due."""
        self._report.on_progress(progress)
        is_last = progress.step >= self._run.last_step or progress.is_stopped_early
        grown, facts = self._run.after(progress.tokens), self._agent.facts
        if grown is self._run or is_last or self._interrupted_by or facts.is_failed:
            return
        self._run = grown
        self._report.growing(grown)
        self._form(facts.generation + 1)

    def on_figures(self, rank: int, figures: ProcessFigures) -> None:
        """Show nothing of one process' own numbers."""

    def on_growth_rejected(self, rejection: GrowthRejection) -> None:
        """Go on with the model before, which the processes have again; where the run never was
        declared as that, it ends with the agent's reason.
        """
        kept = self._run.keeping(rejection.model)
        if kept is None or self._agent.facts.is_failed:
            return
        rejected = reject_growth(self._run.configuration, rejection)
        if self._run.output:
            write_rejected(self._run.output, rejected)
        if self._interrupted_by:
            return
        self._run = kept
        self._report.growth_rejected(kept, rejected)
        self._form(self._agent.facts.generation + 1)

    def _form(self, generation: int) -> None:
        """Have the only group of a local run, this machine, train what the run is now; the number
        is one that no group has had that saved where it does.
        """
        member = Member(index=0, address=_LOOPBACK_ADDRESS, processes=self._run.mesh.size)
        judgement = self._agent.assign(
            GroupAssignment(
                run_uid=self._run.name,
                generation=generation,
                members=(member,),
                mesh=self._run.mesh,
                configuration=self._run.configuration,
            )
        )
        assert judgement.verdict is Verdict.OBEYED, judgement.message

    def _interrupt(self, number: signal.Signals) -> None:
        """Save and stop; the second time stop without saving."""
        if self._interrupted_by:
            self._agent.end_at_once()
            return
        self._interrupted_by = number
        self._report.interrupting()
        self._agent.interrupt()


def _taken_up(run: LocalRun, output: Path) -> tuple[LocalRun, RejectedGrowth | None]:
    """Return the run as the newest checkpoint has it go on, and the growth that it does not try
    again.
    """
    grown, rejected = run.after(_saved_tokens(output)), read_rejected(output)
    if rejected is None or not rejected.is_of(grown.configuration):
        return grown, None
    kept = grown.keeping(rejected.rejection.model)
    return (kept, rejected) if kept else (grown, None)


def _saved_tokens(output: Path) -> int:
    """Return how many tokens the newest checkpoint in a directory has seen; 0 without one."""
    from modelscaling_trainer.checkpoint.catalog import find_newest  # noqa: PLC0415 - brings torch

    try:
        newest = find_newest(output)
    except (ConfigurationError, OSError):
        return 0  # the workers, who read it too, say what is wrong
    return newest.counters.tokens if newest else 0


async def _never(leader: Member, generation: int, attempt: int) -> StoreAddress:
    """Refuse: the only member of a group is its leader and asks nobody."""
    raise AssertionError(f"asked {leader} for the store of {generation}, attempt {attempt}")


def _loopback_interface() -> str:
    """Return the name of the interface to this machine itself; its host name may lead nowhere."""
    names = (name for _, name in socket.if_nameindex())
    return next((name for name in names if re.fullmatch(r"lo\d*", name)), "lo")


def _cache_directory() -> Path:
    """Return where what is made from the data is kept for the next run."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "modelscaling"


if __name__ == "__main__":
    sys.exit(main())

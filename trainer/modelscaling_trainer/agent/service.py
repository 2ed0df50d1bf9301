"""The agent as a service: its settings, its server, its metrics and its report around it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, disable_created_metrics

from modelscaling.exit_code import ExitCode
from modelscaling.protocol import Failure, TerminationReport
from modelscaling_trainer.agent.agent import Agent
from modelscaling_trainer.agent.exposition import RunMetrics
from modelscaling_trainer.agent.heartbeat import Heartbeat
from modelscaling_trainer.agent.probes import Probes
from modelscaling_trainer.agent.report import write_report
from modelscaling_trainer.agent.server import start_server
from modelscaling_trainer.agent.settings import (
    SettingsError,
    read_pod_settings,
    termination_log,
)
from modelscaling_trainer.agent.store_lookup import look_up_store
from modelscaling_trainer.log import configure_logging

if TYPE_CHECKING:
    from pathlib import Path

    from modelscaling.protocol import Member, StoreAddress
    from modelscaling_trainer.agent.settings import PodSettings

_log = logging.getLogger(__name__)


def serve() -> ExitCode:
    """Run the agent until its work is done; return the container's exit code."""
    configure_logging()
    disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        settings = read_pod_settings(os.environ)
    except SettingsError as error:
        _log.error("the agent cannot start", extra={"error": str(error)})
        return _leave_failure(
            termination_log(os.environ), ExitCode.CONFIGURATION, "BadSettings", str(error)
        )
    return asyncio.run(_serve(settings))


def _leave_failure(file: Path, exit_code: ExitCode, reason: str, message: str) -> ExitCode:
    """Report what kept the agent from its work."""
    failure = Failure(exit_code=exit_code, reason=reason, message=message)
    write_report(file, TerminationReport(generation=0, failure=failure))
    return exit_code


async def _serve(settings: PodSettings) -> ExitCode:
    agent, registry = _assemble(settings)
    heartbeat = Heartbeat(agent, index=settings.agent.identity.index, key=settings.key)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.interrupt)
    try:
        runner = await start_server(agent, heartbeat, registry, settings)
        try:
            async with asyncio.TaskGroup() as tasks:
                watches = [
                    tasks.create_task(heartbeat.run()),
                    tasks.create_task(Probes(agent, index=settings.agent.identity.index).run()),
                ]
                exit_code = await agent.run()
                for watch in watches:
                    watch.cancel()
        finally:
            await runner.cleanup()
    except Exception as error:  # noqa: BLE001 - the operator must learn of it, whatever it is
        _log.exception("the agent failed")
        return _leave_failure(
            settings.termination_log, ExitCode.CRASHED, "AgentFailed", f"{error!r}"
        )
    write_report(settings.termination_log, agent.termination_report())
    return exit_code


def _assemble(settings: PodSettings) -> tuple[Agent, CollectorRegistry]:
    """Return the agent, and the registry of the metrics that watch it."""
    metrics = RunMetrics(
        namespace=settings.namespace,
        name=settings.name,
        index=settings.agent.identity.index,
        parameters=lambda: agent.parameters,
        has_first_rank=lambda: agent.has_first_rank,
        worker_failures=lambda: agent.facts.worker_failures,
    )
    registry = CollectorRegistry()
    registry.register(metrics)

    async def look_up(leader: Member, generation: int, attempt: int) -> StoreAddress:
        return await look_up_store(
            leader,
            generation,
            attempt,
            key=settings.key,
            timeout_s=settings.agent.forming_timeout_s,
        )

    agent = Agent(settings.agent, observer=metrics, look_up_store=look_up, environment=os.environ)
    return agent, registry

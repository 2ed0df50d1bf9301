from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from tests.trainer.agent_process import AgentProcess, start_agent
from tests.trainer.runs import write_text
from tests.trainer.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from modelscaling.configuration import RunConfiguration
    from tests.trainer.agent_process import StartAgent


@pytest.fixture
def group_of_one() -> Iterator[None]:
    """Have this process be a whole group, without a network."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file of text that a model can learn something from."""
    return write_text(tmp_path / "data")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartAgent]:
    """Start real agents, each with its own directory, and end them after the test."""
    started: list[AgentProcess] = []

    def start_one(configuration: RunConfiguration, **options: Any) -> AgentProcess:
        agent = start_agent(tmp_path / f"agent-{len(started)}", configuration, **options)
        started.append(agent)
        return agent

    yield start_one
    for agent in started:
        agent.process.kill()  # its other processes end with it
        agent.process.wait(30)


@pytest.fixture
def start_workers(tmp_path: Path) -> Iterator[Callable[..., list[Worker]]]:
    """Start workers of a run without an agent, and end them with the test."""
    started: list[Worker] = []

    def begin(count: int, run: RunConfiguration, **options: Any) -> list[Worker]:
        workers = [Worker(run, scratch=tmp_path / "scratch", **options) for _ in range(count)]
        started.extend(workers)
        return workers

    yield begin
    for worker in started:
        worker.kill()

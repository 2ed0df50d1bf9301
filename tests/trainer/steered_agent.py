"""An agent without workers: a test says what they would have said, and sees what becomes of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelscaling.exit_code import ExitCode
from modelscaling_trainer.agent.agent import Agent
from modelscaling_trainer.agent.crew import Crew
from modelscaling_trainer.agent.fencing import Identity
from modelscaling_trainer.agent.settings import AgentSettings
from modelscaling_trainer.agent.store_lookup import StoreUnknownError
from modelscaling_trainer.agent.worker_facts import WorkerFacts, WorkerState
from tests.trainer.agent_builders import RUN_UID, make_configuration

if TYPE_CHECKING:
    from collections.abc import Callable

    from modelscaling.mesh import Mesh
    from modelscaling.protocol import GrowthRejection, Member, Progress, StoreAddress
    from modelscaling_trainer.figures import ProcessFigures
    from modelscaling_trainer.worker_protocol import Command, Event


class NoObserver:
    """Looks away."""

    def on_progress(self, progress: Progress) -> None: ...

    def on_figures(self, rank: int, figures: ProcessFigures) -> None: ...

    def on_growth_rejected(self, rejection: GrowthRejection) -> None: ...


async def _unknown(leader: Member, generation: int, attempt: int) -> StoreAddress:
    raise StoreUnknownError(f"{leader} of generation {generation}, attempt {attempt}")


class NoCrew(Crew):
    """Has no processes; remembers what they would have been told, and who was killed."""

    def __init__(self) -> None:
        self.told: list[tuple[int, Command]] = []
        self.killed: list[int] = []

    def tell(self, local_rank: int, command: Command) -> None:
        self.told.append((local_rank, command))

    def name(self, local_rank: int, label: str) -> None: ...

    def prepare_for(self, mesh: Mesh) -> None: ...

    def kill(self, local_rank: int) -> None:
        self.killed.append(local_rank)


class SteeredAgent(Agent):
    """The agent of a pod with one worker, on a clock that the test can put forward."""

    def __init__(self, index: int = 0) -> None:
        super().__init__(
            AgentSettings(
                identity=Identity(run_uid=RUN_UID, index=index, processes=1),
                configuration=make_configuration(),
                scratch=Path("scratch"),
                checkpoint_directory=None,
            ),
            observer=NoObserver(),
            look_up_store=_unknown,
            environment={},
        )
        self._waits = asyncio.Semaphore(0)
        self._crew = self.crew = NoCrew()
        self._passed_s = 0.0

    async def wait_for(self, holds: Callable[[], bool], timeout_s: float | None) -> bool:
        self._waits.release()
        return await super().wait_for(holds, timeout_s)

    async def is_awaited(self, times: int = 1) -> None:
        """Return once somebody else has begun to wait for something so many times."""
        async with asyncio.timeout(30):
            for _ in range(times):
                await self._waits.acquire()

    def _now(self) -> float:
        return super()._now() + self._passed_s

    def after(self, seconds: float) -> SteeredAgent:
        """Let so much time have passed."""
        self._passed_s += seconds
        return self

    def hear(self, *events: Event) -> None:
        """Let its worker say something."""
        for event in events:
            self._take_in(0, event)

    async def act(self) -> ExitCode:
        """Do what is to be done, until the end."""
        return await self._act_until_end()

    def learn(self, **changes: Any) -> None:
        """Change what it knows."""
        self._update(replace(self.facts, **changes))

    def train(self, *, attempt: int = 1, store_port: int | None = 4242) -> None:
        """Have its worker train in an attempt to form the newest group."""
        worker = WorkerFacts(
            state=WorkerState.BUSY,
            generation=self.facts.generation,
            attempt=attempt,
            placement=self.facts.placement,
            phase="Training",
        )
        self.learn(workers=(worker,), attempt=attempt, store_port=store_port)

    def end(self) -> None:
        """End well."""
        self._end_with(ExitCode.DONE)

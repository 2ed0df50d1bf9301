"""The pod's worker processes, and the zygote that they are made by."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from modelscaling_trainer.agent.worker_process import WorkerProcess
from modelscaling_trainer.agent.zygote_process import ZygoteProcess

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modelscaling.mesh import Mesh
    from modelscaling_trainer.worker_protocol import Command


class Crew:
    """At most one process in each worker's place, and one zygote; a zygote that has ended is
    replaced when the next worker is started, and does the living ones no harm.
    """

    def __init__(self, environment: Mapping[str, str], *, tasks: asyncio.TaskGroup) -> None:
        """Take what the processes inherit, and who owns what watches the zygote."""
        self._environment = environment
        self._tasks = tasks
        self._workers: dict[int, WorkerProcess] = {}
        self._zygote: ZygoteProcess | None = None
        self._one_at_a_time = asyncio.Lock()

    async def start(self, local_rank: int, *, mesh: Mesh | None) -> WorkerProcess:
        """Return a new process in a worker's place; the mesh is what the zygote imports for.

        Raises:
            ZygoteEndedError: the zygote has ended instead.
        """
        zygote = await self._living_zygote(mesh)
        worker = await WorkerProcess.start(zygote.fork, label=f"worker {local_rank}")
        self._workers[local_rank] = worker
        return worker

    def tell(self, local_rank: int, command: Command) -> None:
        """Tell a worker that was started; nothing happens if it has ended."""
        self._workers[local_rank].send(command)

    def name(self, local_rank: int, label: str) -> None:
        """Let a worker's log lines begin otherwise."""
        self._workers[local_rank].label = label

    def prepare_for(self, mesh: Mesh) -> None:
        """Have later workers start with what a mesh needs."""
        if self._zygote:
            self._zygote.prepare_for(mesh)

    def kill(self, local_rank: int) -> None:
        """End the process in a worker's place at once, if there is one."""
        if local_rank in self._workers:
            self._workers[local_rank].kill()

    def end(self) -> None:
        """End all at once, the zygote too."""
        for worker in self._workers.values():
            worker.kill()
        if self._zygote:
            self._zygote.kill()

    async def _living_zygote(self, mesh: Mesh | None) -> ZygoteProcess:
        async with self._one_at_a_time:
            if self._zygote is None or self._zygote.has_ended:
                self._zygote = await ZygoteProcess.start(self._environment, mesh=mesh)
                self._tasks.create_task(self._zygote.run())
            return self._zygote

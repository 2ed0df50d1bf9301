from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pytest

from modelscaling.mesh import Mesh
from modelscaling_trainer.agent.zygote_process import ZygoteEndedError, ZygoteProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from modelscaling_trainer.agent.worker_process import ForkedProcess

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]

TIMEOUT_S = 90
SCRIPTS = "tests.trainer.zygote_of_scripts"


@asynccontextmanager
async def running(module: str = SCRIPTS, mesh: Mesh | None = None) -> AsyncIterator[ZygoteProcess]:
    """A zygote that is watched."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    zygote = await ZygoteProcess.start(environment, mesh=mesh, module=module)
    async with asyncio.timeout(TIMEOUT_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(zygote.run())
        yield zygote
        zygote.kill()


@dataclass
class Child:
    """A forked process with the other ends of its pipes."""

    forked: ForkedProcess
    commands: BinaryIO
    events: BinaryIO

    async def end(self) -> int | None:
        return await self.forked.exit_code

    async def say(self) -> bytes:
        """Return the next line of its events."""
        return await asyncio.to_thread(self.events.readline)

    def close(self) -> None:
        self.commands.close()
        self.events.close()


async def fork(zygote: ZygoteProcess, program: str) -> Child:
    commands, mine = os.pipe()
    theirs, events = os.pipe()
    try:
        forked = await zygote.fork(commands, events, 2)
    finally:
        os.close(commands)
        os.close(events)
    child = Child(forked, os.fdopen(mine, "wb", buffering=0), os.fdopen(theirs, "rb"))
    child.commands.write(program.replace("\n", "\\n").encode() + b"\n")
    return child


async def has_ended(pidfd: int) -> bool:
    """Whether a process ends in time; takes the descriptor."""
    with os.fdopen(pidfd) as file:
        return bool((await asyncio.to_thread(select.select, [file], [], [], TIMEOUT_S / 2))[0])


def threads(zygote: ZygoteProcess) -> int:
    return len(list(Path(f"/proc/{zygote._process.pid}/task").iterdir()))


WAIT = "commands.read()"


async def test_children_get_what_is_sent_to_them_and_their_ends_are_told() -> None:
    async with running() as zygote:
        first = await fork(zygote, "events.write(commands.readline())\nevents.flush()\ncode = 3")
        second = await fork(zygote, "raise KeyError('nobody foresaw it')")
        assert first.forked.pid != second.forked.pid
        first.commands.write(b"hello\n")

        assert await first.say() == b"hello\n"
        assert [await first.end(), await second.end()] == [3, 1]
        # Nobody else holds the other ends.
        assert await second.say() == b""
        first.close()
        second.close()


async def test_a_killed_child_is_told_with_its_signal() -> None:
    async with running() as zygote:
        child = await fork(zygote, WAIT)

        os.kill(child.forked.pid, signal.SIGKILL)

        assert await child.end() == -signal.SIGKILL
        child.close()


async def test_a_childs_own_children_end_with_it() -> None:
    async with running() as zygote:
        child = await fork(
            zygote,
            "import subprocess, sys\n"
            "other = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
            "events.write(b'%d' % other.pid + bytes([10]))\n"
            "events.flush()\n" + WAIT,
        )
        grandchild = os.pidfd_open(int(await child.say()))

        os.kill(child.forked.pid, signal.SIGKILL)

        assert await child.end() == -signal.SIGKILL
        assert await has_ended(grandchild)
        child.close()


async def test_children_live_on_when_the_zygote_dies_and_no_more_are_made() -> None:
    async with running() as zygote:
        child = await fork(zygote, "events.write(commands.readline())\nevents.flush()")

        zygote.kill()

        assert await child.end() is None
        child.commands.write(b"hello\n")
        assert await child.say() == b"hello\n"
        with pytest.raises(ZygoteEndedError, match="ended with exit code -9"):
            await fork(zygote, WAIT)
        child.close()


async def test_children_end_with_the_agent() -> None:
    async with running() as zygote:
        child = await fork(zygote, "import signal; signal.pause()")
        pidfd = os.pidfd_open(child.forked.pid)

        zygote._control.shutdown(socket.SHUT_WR)  # all that the zygote sees of an agent's death

        assert await has_ended(pidfd)
        child.close()


async def test_a_zygote_that_cannot_start_says_why() -> None:
    async with running("modelscaling_trainer.nowhere") as zygote:
        with pytest.raises(ZygoteEndedError, match=r"exit code 1: .*No module named"):
            await fork(zygote, WAIT)


async def test_whatever_it_imports_it_has_one_thread_when_it_forks() -> None:
    async with running(mesh=Mesh(dataShard=2)) as zygote:
        children = [await fork(zygote, "")]
        alone = [threads(zygote)]

        zygote.prepare_for(Mesh(pipeline=2, tensor=2))
        children.append(await fork(zygote, ""))

        assert [*alone, threads(zygote)] == [1, 1]
        for child in children:
            child.close()

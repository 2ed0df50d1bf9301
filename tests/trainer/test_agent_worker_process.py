from __future__ import annotations

import asyncio
import gc
import sys
from pathlib import Path

import pytest

from modelscaling_trainer.agent.worker_process import ForkedProcess, WorkerProcess
from modelscaling_trainer.request import Request
from modelscaling_trainer.worker_protocol import Ask, Event, GroupLost, Warm, encode

pytestmark = pytest.mark.process

_START = "import os, sys; events = os.fdopen(int(sys.argv[1]), 'wb', buffering=0)\n"


async def start(program: str) -> WorkerProcess:
    """Start a program in the worker's place; it has its commands as standard input, and `events`
    to write to.
    """

    async def fork(commands: int, events: int, log: int) -> ForkedProcess:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _START + program, str(events)),
            stdin=commands,
            stdout=log,
            stderr=log,
            pass_fds=[events],
            start_new_session=True,
        )
        exit_code: asyncio.Future[int | None] = asyncio.ensure_future(process.wait())
        return ForkedProcess(pid=process.pid, exit_code=exit_code)

    return await WorkerProcess.start(fork, label="worker 0")


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


async def test_a_worker_that_cannot_be_made_leaves_nothing_open() -> None:
    gc.collect()  # what other tests have left open would be closed at any time
    before = open_files()

    async def fork(*_: int) -> ForkedProcess:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await WorkerProcess.start(fork, label="worker 0")

    await asyncio.sleep(0)  # transports close their files in the next turn of the loop
    assert open_files() == before


async def test_events_of_any_length_arrive_until_the_worker_ends() -> None:
    short = GroupLost(generation=1, attempt=1, message="LONG")
    worker = await start(
        f"events.write({encode(Warm())!r})\n"
        f"events.write({encode(short)!r}.replace(b'LONG', b'x' * 300_000))\n"
        "sys.exit(3)"
    )
    heard: list[Event] = []

    code = await worker.run(heard.append)

    assert code == 3
    assert heard == [Warm(), GroupLost(generation=1, attempt=1, message="x" * 300_000)]


async def test_a_worker_gets_its_commands() -> None:
    ask = Ask(generation=1, attempt=1, request=Request.STOP)
    worker = await start(f"sys.exit(0 if sys.stdin.buffer.readline() == {encode(ask)!r} else 1)")

    worker.send(ask)

    assert await worker.run(lambda _: None) == 0


async def test_its_log_is_passed_on_with_its_name_and_its_end_kept(
    capfd: pytest.CaptureFixture[str],
) -> None:
    worker = await start(
        "print('to standard output', flush=True)\n"
        "for n in range(30): print('line', n, file=sys.stderr)\n"
        "sys.stderr.write('unfinished')"
    )
    worker.label = "rank 3"

    await worker.run(lambda _: None)

    passed_on = capfd.readouterr().err
    assert "[rank 3] to standard output\n" in passed_on
    assert "[rank 3] unfinished\n" in passed_on
    assert worker.last_lines.splitlines() == [f"line {n}" for n in range(11, 30)] + ["unfinished"]


async def test_a_killed_worker_is_noticed() -> None:
    worker = await start("sys.stdin.read()")

    worker.kill()

    assert await worker.run(lambda _: None) == -9


async def test_a_worker_does_not_outlive_the_task_that_watches_it() -> None:
    worker = await start(f"events.write({encode(Warm())!r}); sys.stdin.read()")
    heard = asyncio.Event()
    task = asyncio.create_task(worker.run(lambda _: heard.set()))
    await heard.wait()

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert await worker._process.exit_code == -9

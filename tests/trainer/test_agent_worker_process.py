from __future__ import annotations

import asyncio
import os
import select
import sys

import pytest

from modelscaling_trainer.agent.worker_process import WorkerProcess
from modelscaling_trainer.request import Request
from modelscaling_trainer.worker_protocol import Ask, Event, GroupLost, Warm, encode

pytestmark = pytest.mark.process

_START = "import os, sys; events = os.fdopen(int(sys.argv[1]), 'wb', buffering=0)\n"


async def start(program: str) -> WorkerProcess:
    """Start a program in the worker's place; it has `events` to write to."""
    return await WorkerProcess.start({}, command=(sys.executable, "-c", _START + program))


async def test_events_of_any_length_arrive_until_the_worker_ends() -> None:
    short = GroupLost(generation=1, message="LONG")
    worker = await start(
        f"events.write({encode(Warm())!r})\n"
        f"events.write({encode(short)!r}.replace(b'LONG', b'x' * 300_000))\n"
        "sys.exit(3)"
    )
    heard: list[Event] = []

    code = await worker.run(heard.append)

    assert code == 3
    assert heard == [Warm(), GroupLost(generation=1, message="x" * 300_000)]


async def test_a_worker_gets_its_commands() -> None:
    ask = Ask(generation=1, request=Request.STOP)
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


async def test_children_end_with_their_worker() -> None:
    worker = await start(
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        'lost = b\'{"kind":"GroupLost","generation":0,"message":"%d"}\\n\'\n'
        "events.write(lost % child.pid)\n"
        "child.wait()"
    )
    children: list[int] = []

    def on_event(event: Event) -> None:
        assert isinstance(event, GroupLost)
        children.append(os.pidfd_open(int(event.message)))
        worker.kill()

    async with asyncio.timeout(20):
        assert await worker.run(on_event) == -9

    (child,) = children
    with os.fdopen(child) as file:
        assert select.select([file], [], [], 10)[0]


async def test_a_worker_does_not_outlive_the_task_that_watches_it() -> None:
    worker = await start(f"events.write({encode(Warm())!r}); sys.stdin.read()")
    heard = asyncio.Event()
    task = asyncio.create_task(worker.run(lambda _: heard.set()))
    await heard.wait()

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert await worker._process.wait() == -9

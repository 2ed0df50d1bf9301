"""A send that gloo forgets when its connection breaks."""

from __future__ import annotations

import gc
import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import torch.distributed as dist

from modelscaling.mesh import Mesh
from modelscaling_trainer.errors import GroupLostError
from modelscaling_trainer.group import Group
from modelscaling_trainer.lost_sends import left_when_abandoned
from modelscaling_trainer.process_group import process_group
from modelscaling_trainer.request import Requests
from tests.trainer.workers import FORKSERVER

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

CPU = torch.device("cpu")
ELEMENTS = 64 << 20
"""More than the buffers of a connection take, and than arrives while the receiver is stopped."""


def make_group(rank: int, port: int | None) -> Group:
    return Group(
        generation=1,
        mesh=Mesh(dataReplicate=2),
        rank=rank,
        local_rank=0,
        store_host="127.0.0.1",
        store_port=port,
    )


def stop_while_receiving(kind: str, port: int) -> None:
    received = torch.zeros(ELEMENTS)
    with process_group(
        make_group(1, port), device=CPU, on_store_port=lambda _: None, requests=Requests()
    ):
        work = (
            dist.irecv(received, src=0)
            if kind == "to a single peer"
            else dist.broadcast(received, src=0, async_op=True)
        )
        assert work is not None
        while not received[0]:
            pass
        os.kill(os.getpid(), signal.SIGSTOP)


def send_and_give_up(kind: str, test: Connection) -> None:
    try:
        send_until_abandoned(kind, test)
    except GroupLostError as error:
        message = error.message
    gc.collect()  # frees the group unless it is kept
    test.send(message)
    # A process that ends as usual waits for the thread that sends.
    os._exit(0)


def send_until_abandoned(kind: str, test: Connection) -> None:
    requests = Requests()
    with process_group(make_group(0, None), device=CPU, on_store_port=test.send, requests=requests):
        sent = torch.ones(ELEMENTS)
        work = (
            dist.isend(sent, dst=1)
            if kind == "to a single peer"
            else dist.broadcast(sent, src=0, async_op=True)
        )
        assert work is not None
        assert test.recv() == "rank 1 is stopped"
        requests.abandon("rank 1 is stopped")
        if kind == "broadcast that nobody waits for":
            requests.check_abandoned()
        work.wait()


class Late:
    """Work that ends while the wait for it says that its time is up."""

    def __init__(self, error: str | None = None) -> None:
        self.error = error
        self.is_over = False

    def get_future(self) -> None: ...

    def is_completed(self) -> bool:
        return self.is_over

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        if timeout and not self.is_over:
            self.is_over = True
            raise RuntimeError("Operation timed out!")
        if self.error:
            raise RuntimeError(self.error)
        return True


def test_work_that_ends_as_its_time_is_up_says_how_it_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dist, "Work", Late)

    with left_when_abandoned(Requests(), timeout_s=1):
        assert Late().wait()
        with pytest.raises(RuntimeError, match="Connection closed by peer"):
            Late(error="Connection closed by peer").wait()


@pytest.mark.process
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "kind", ["broadcast", "to a single peer", "broadcast that nobody waits for"]
)
def test_a_group_with_a_send_that_gloo_forgets_can_be_left(kind: str) -> None:
    mine, theirs = FORKSERVER.Pipe()
    sender = FORKSERVER.Process(target=send_and_give_up, args=(kind, theirs))
    sender.start()
    receiver = FORKSERVER.Process(target=stop_while_receiving, args=(kind, mine.recv()))
    receiver.start()
    try:
        status = Path(f"/proc/{receiver.pid}/stat")
        while " T " not in status.read_text():
            assert sender.is_alive()
        mine.send("rank 1 is stopped")

        assert mine.poll(30), "the wait was not left"
        assert mine.recv() == "rank 1 is stopped"
    finally:
        for process in (sender, receiver):
            process.kill()
            process.join()

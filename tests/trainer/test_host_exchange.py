from __future__ import annotations

import ctypes
import os
import signal
from collections import Counter
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from modelscaling.mesh import Mesh
from modelscaling_trainer.errors import GroupLostError
from modelscaling_trainer.gradient import Gradient, gradient_of
from modelscaling_trainer.group import Group
from modelscaling_trainer.host_exchange import HostExchange, open_exchange
from modelscaling_trainer.parallel.sharding import shard_weights
from modelscaling_trainer.process_group import communication, process_group
from modelscaling_trainer.request import Requests
from tests.trainer.decoders import make_decoder, make_shape
from tests.trainer.ranks import everybody, on_every_rank
from tests.trainer.workers import FORKSERVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

SIZES = (1, 7, 300_001)
"""Fewer elements than ranks, a number that does not divide, and several chunks."""
NOBODY = 65534
PR_SET_DUMPABLE = 4
OPEN_FILES = Path("/dev/fd")


def open_here() -> HostExchange:
    exchange = open_exchange(everybody())
    assert exchange is not None
    return exchange


def drawn(rank: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(rank)
    return [torch.randn(size, generator=draw) for size in SIZES]


def bits(tensors: list[torch.Tensor]) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in tensors]


def _all_reduced(rank: int) -> tuple[bool, list[bytes]]:
    exchange = open_here()
    tensors, expected = drawn(rank), drawn(rank)
    for tensor in expected:
        dist.all_reduce(tensor)
    for _ in range(3):  # what was summed before is in the memory that is read
        tensors = drawn(rank)
        exchange.all_reduce(tensors)
    is_close = all(
        torch.allclose(sum_, ours, rtol=1e-6, atol=1e-6)
        for sum_, ours in zip(expected, tensors, strict=True)
    )
    return is_close, bits(tensors)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_all_ranks_get_gloos_sum_and_to_the_bit_the_same(ranks: int, tmp_path: Path) -> None:
    results = on_every_rank(_all_reduced, ranks, meeting=tmp_path / "meeting")

    assert [is_close for is_close, _ in results] == [True] * ranks
    assert all(sums == results[0][1] for _, sums in results)


def _cut_and_gathered(rank: int, ranks: int, dtype: torch.dtype) -> list[bool]:
    exchange = open_here()
    size = 150_000
    summands = torch.arange(ranks * size).remainder(7).add(rank).to(dtype)
    part = torch.empty(size, dtype=dtype)
    exchange.reduce_scatter(part, summands)
    whole = sum(torch.arange(ranks * size).remainder(7).add(peer) for peer in range(ranks))
    assert isinstance(whole, torch.Tensor)
    gathered, in_place = torch.empty(2, ranks * size, dtype=dtype)
    exchange.all_gather(gathered, part)
    own = in_place[rank * size : (rank + 1) * size]
    own.copy_(part)
    exchange.all_gather(in_place, own)
    return [torch.equal(whole.to(dtype), result) for result in (gathered, in_place)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gathered_parts_of_a_sum_are_the_sum(dtype: torch.dtype, tmp_path: Path) -> None:
    results = on_every_rank(_cut_and_gathered, 3, 3, dtype, meeting=tmp_path / "meeting")

    assert results == [[True, True]] * 3


def _summed_gradient(rank: int, apart: int | None) -> tuple[bool, list[float]]:
    weight = torch.nn.Parameter(torch.ones(4))
    gradient = Gradient({"weight": weight})
    with _kept_apart() if rank == apart else nullcontext():
        opened = open_exchange(everybody())
        gradient.join(everybody())
    gradient.clear()
    for is_last in (False, True):
        gradient.before_backward(is_last=is_last)
        torch.autograd.backward((weight * (rank + 1)).sum())
    gradient.finish()
    return opened is not None, gradient_of(weight).tolist()


@contextmanager
def _kept_apart() -> Iterator[None]:
    """Have this process not read others, where it is root's, or else not be read by others."""
    prctl = ctypes.CDLL(None).prctl
    if os.getuid() == 0:
        os.setresuid(NOBODY, NOBODY, 0)
        yield
        os.setresuid(0, 0, 0)
    else:
        prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
        yield
        prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)


@pytest.mark.parametrize("apart", [None, 1], ids=["all can read", "one is kept apart"])
def test_the_gradient_is_summed_whether_or_not_memory_can_be_read(
    apart: int | None, tmp_path: Path
) -> None:
    results = on_every_rank(_summed_gradient, 3, apart, meeting=tmp_path / "meeting")

    assert results == [(apart is None, [12.0] * 4)] * 3


def _calls_of_steps(_: int) -> dict[str, int]:
    """Return how often the machine's own exchange was used in a step on dp2 and one on fsdp2."""
    calls: Counter[str] = Counter()

    def counted(name: str, exchange: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            calls[name] += 1
            exchange(*arguments)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("all_reduce", "all_gather", "reduce_scatter"):
            patch.setattr(HostExchange, name, counted(name, getattr(HostExchange, name)))
        whole = torch.nn.Parameter(torch.ones(4))
        gradient = Gradient({"weight": whole})
        gradient.join(everybody())
        gradient.clear()
        gradient.before_backward(is_last=True)
        torch.autograd.backward(whole.sum())
        gradient.finish()
        decoder = make_decoder(make_shape())
        shard_weights(decoder, init_device_mesh("cpu", (2,)), keeps_gathered=True)
        torch.autograd.backward(decoder(torch.zeros(1, 4, dtype=torch.long)).sum())
    return dict(calls)


def test_a_step_sums_gathers_and_cuts_through_memory(tmp_path: Path) -> None:
    first, second = on_every_rank(_calls_of_steps, 2, meeting=tmp_path / "meeting")

    assert first == second
    assert first["all_reduce"] == 1
    assert first["all_gather"] >= first["reduce_scatter"] > 1


def _files_after_joining(_: int) -> tuple[int, int]:
    gradient = Gradient({"weight": torch.nn.Parameter(torch.ones(4))})
    gradient.join(everybody())
    before = len([*OPEN_FILES.iterdir()])
    for _again in range(20):
        gradient.join(everybody())
    return before, len([*OPEN_FILES.iterdir()])


def test_forming_groups_again_opens_nothing_that_stays(tmp_path: Path) -> None:
    for before, after in on_every_rank(_files_after_joining, 2, meeting=tmp_path / "meeting"):
        assert before == after


def _sum_until_one_dies(pipe: Connection, rank: int, port: int | None, method: str) -> None:
    group = Group(
        generation=1,
        mesh=Mesh(dataReplicate=3),
        rank=rank,
        local_rank=rank,
        store_host="127.0.0.1",
        store_port=port,
    )
    try:
        with process_group(
            group,
            device=torch.device("cpu"),
            on_store_port=pipe.send,
            requests=Requests(),
        ) as members:
            assert members is not None
            exchange = open_exchange(members)
            assert exchange is not None
            pipe.send("opened")
            if rank == 1:
                assert pipe.recv() == "go"
                setattr(exchange, method, _die)
            with communication("summing"):
                exchange.all_reduce(drawn(rank))
            pipe.send("the sum is complete")
    except GroupLostError as error:
        pipe.send(error.message)


def _die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("method", ["_tell", "_sum", "_meet", "_peers"])
@pytest.mark.timeout(120)
def test_a_peer_that_is_killed_in_a_sum_is_a_loss_to_all_others(
    method: str, start_rank: Callable[..., Connection]
) -> None:
    first = start_rank(0, None, method)
    assert first.poll(60)
    port = first.recv()
    victim, third = (start_rank(rank, port, method) for rank in (1, 2))
    survivors = [first, third]
    for pipe in (victim, *survivors):
        assert pipe.poll(60)
        assert pipe.recv() == "opened"
    victim.send("go")

    for pipe in survivors:
        assert pipe.poll(60), "it waits for the dead"
        assert pipe.recv().startswith("lost the group while summing: ")


@pytest.fixture
def start_rank() -> Any:
    """Start a rank of a group of which the second dies, and end it with the test."""
    started = []

    def begin(rank: int, port: int | None, method: str) -> Connection:
        mine, theirs = FORKSERVER.Pipe()
        process = FORKSERVER.Process(target=_sum_until_one_dies, args=(theirs, rank, port, method))
        process.start()
        started.append(process)
        theirs.close()
        return mine

    yield begin
    for process in started:
        process.kill()
        process.join()

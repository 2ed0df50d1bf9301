from __future__ import annotations

import socket
import threading
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore  # not typed as exported by torch.distributed
from torch.distributed.distributed_c10d import PrefixStore

from modelscaling.mesh import Mesh
from modelscaling_trainer.errors import GroupLostError
from modelscaling_trainer.group import Group
from modelscaling_trainer.process_group import all_gather, computing_together, process_group
from modelscaling_trainer.request import Requests
from tests.trainer.workers import DEADLINE_S, FORKSERVER

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

CPU = torch.device("cpu")


def make_group(*, ranks: int, rank: int = 0, port: int | None = None) -> Group:
    return Group(
        generation=1,
        mesh=Mesh(dataReplicate=ranks),
        rank=rank,
        local_rank=0,
        store_host="127.0.0.1",
        store_port=port,
    )


def test_groups_follow_each_other_in_one_process() -> None:
    ports: list[int] = []
    for _ in range(3):
        with process_group(
            make_group(ranks=1), device=CPU, on_store_port=ports.append, requests=Requests()
        ) as everybody:
            assert everybody is not None
            assert all_gather({"rank": 0}, everybody) == [{"rank": 0}]
        assert not dist.is_initialized()

    assert len(ports) == 3


def test_an_error_inside_dissolves_the_group() -> None:
    with (
        pytest.raises(KeyError),
        process_group(
            make_group(ranks=1), device=CPU, on_store_port=lambda _: None, requests=Requests()
        ),
    ):
        raise KeyError

    assert not dist.is_initialized()


def test_members_that_do_not_come_are_named() -> None:
    forming = process_group(
        make_group(ranks=3),
        device=CPU,
        on_store_port=lambda _: None,
        requests=Requests(),
        form_timeout_s=0.1,
    )
    with (
        pytest.raises(GroupLostError, match=r"ranks \[1, 2\] of generation 1 did not come"),
        forming,
    ):
        pass


def test_a_group_that_is_abandoned_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    requests = Requests()
    requests.abandon("rank 0 is gone")
    forming = process_group(
        make_group(ranks=2, rank=1, port=port),
        device=CPU,
        on_store_port=lambda _: None,
        requests=requests,
    )

    with pytest.raises(GroupLostError, match="rank 0 is gone"), forming:
        pass


@pytest.mark.timeout(30)
def test_a_store_that_vanishes_before_it_is_opened_is_not_waited_for_long() -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def be_there_once() -> None:
        connection, _ = server.accept()
        connection.close()
        server.close()

    thread = threading.Thread(target=be_there_once)
    thread.start()
    forming = process_group(
        make_group(ranks=2, rank=1, port=server.getsockname()[1]),
        device=CPU,
        on_store_port=lambda _: None,
        requests=Requests(),
    )

    with pytest.raises(GroupLostError, match="lost the group while opening its store"), forming:
        pass
    thread.join()


@pytest.mark.timeout(30)
def test_a_member_that_vanishes_while_the_members_connect_can_be_given_up() -> None:
    give_up_while_connecting()


@pytest.mark.timeout(60)
def test_whose_group_failed_to_connect_meets_those_who_were_in_none() -> None:
    give_up_while_connecting()

    with ProcessPoolExecutor(max_workers=1, mp_context=FORKSERVER) as peer:
        answers: list[Future[list[dict[str, int]]]] = []

        def call(port: int) -> None:
            answers.append(peer.submit(exchange_ranks, 1, port))

        ours = exchange_ranks(0, None, on_store_port=call)

        assert ours == answers[0].result(DEADLINE_S) == [{"rank": 0}, {"rank": 1}]


def give_up_while_connecting() -> None:
    requests = Requests()
    stores: list[TCPStore] = []

    def come_and_vanish(port: int) -> None:
        stores.append(TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False))
        PrefixStore("generation-1-attempt-1", stores[0]).set("here-1", "1")
        # Rank 0 asks the store for rank 1's address by then, or will find that it may not.
        threading.Timer(0.2, requests.abandon, args=["rank 1 is gone"]).start()

    forming = process_group(
        make_group(ranks=2), device=CPU, on_store_port=come_and_vanish, requests=requests
    )

    with (
        pytest.raises(GroupLostError, match="lost the group while connecting its members"),
        forming,
    ):
        pass


def exchange_ranks(
    rank: int, port: int | None, *, on_store_port: Callable[[int], None] = lambda _: None
) -> list[dict[str, int]]:
    with process_group(
        make_group(ranks=2, rank=rank, port=port),
        device=CPU,
        on_store_port=on_store_port,
        requests=Requests(),
    ) as everybody:
        assert everybody is not None
        return all_gather({"rank": rank}, everybody)


def test_a_store_that_is_not_there_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    forming = process_group(
        make_group(ranks=2, rank=1, port=port),
        device=CPU,
        on_store_port=lambda _: None,
        requests=Requests(),
        form_timeout_s=0.1,
    )
    with (
        pytest.raises(GroupLostError, match=f"store at 127.0.0.1:{port} could not be reached"),
        forming,
    ):
        pass


@pytest.mark.parametrize(
    ("rank", "port"), [(0, 1234), (1, None), (2, 1234)], ids=["host", "guest", "outside"]
)
def test_a_place_that_cannot_be_is_refused(rank: int, port: int | None) -> None:
    with pytest.raises(ValueError, match=f"rank.{rank}"):
        make_group(ranks=2, rank=rank, port=port)


def test_an_error_of_the_computation_itself_stays_what_it_is() -> None:
    with (
        pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"),
        computing_together("computing the gradient"),
    ):
        torch.mm(torch.ones(2, 3), torch.ones(2, 3))


def test_what_a_backend_says_of_a_peer_is_found_through_what_wraps_it() -> None:
    def receive() -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer")

    def run_stage() -> None:
        try:
            receive()
        except RuntimeError as error:
            raise RuntimeError("failed to run the forward pass of stage 1") from error

    with (
        pytest.raises(
            GroupLostError, match=r"while computing the gradient: .*Connection closed by peer"
        ),
        computing_together("computing the gradient"),
    ):
        run_stage()

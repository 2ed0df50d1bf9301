from __future__ import annotations

from bench.outage import Change, tour
from tests.bench.jobs import NotedJob


def test_a_tour_meets_every_change_once() -> None:
    assert [change for change, _ in tour(NotedJob())] == list(Change)


def test_pods_come_and_go_between_two_and_three() -> None:
    job = NotedJob()
    list(tour(job))

    assert job.happened == [
        "worker 2",
        "join 3",
        "killed pod 2",
        "join 3",
        "lost node 2",
        "join 3",
        "leave 2",
        "mesh 2",
        "worker 2",
    ]


def test_a_replacement_counts_from_the_start_of_its_pod() -> None:
    taken = dict(tour(NotedJob()))

    assert taken[Change.REPLACEMENT].seconds == 7.0
    assert taken[Change.JOIN].seconds == 0.5

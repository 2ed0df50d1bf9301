from __future__ import annotations

from bench.outage import Change, Outage, tour


class _Job:
    """Notes how many pods there are when something happens to it."""

    def __init__(self) -> None:
        self.pods = 2
        self.happened: list[str] = []

    def steps(self) -> int:
        return 0

    def kill_a_worker(self, pod: int) -> None:
        raise NotImplementedError

    def kill_worker(self) -> Outage:
        return self._note("worker")

    def join(self) -> tuple[Outage, float]:
        self.pods += 1
        return self._note("join"), 7.0

    def leave(self) -> Outage:
        return self._without_a_pod("leave")

    def kill_pod(self) -> Outage:
        return self._without_a_pod("killed pod")

    def lose_node(self) -> Outage:
        return self._without_a_pod("lost node")

    def shard(self) -> Outage:
        return self._note("mesh")

    def _without_a_pod(self, what: str) -> Outage:
        self.pods -= 1
        return self._note(what)

    def _note(self, what: str) -> Outage:
        self.happened.append(f"{what} {self.pods}")
        return Outage(seconds=0.5, steps_again=1)


def test_a_tour_meets_every_change_once() -> None:
    assert [change for change, _ in tour(_Job())] == list(Change)


def test_pods_come_and_go_between_two_and_three() -> None:
    job = _Job()
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
    taken = dict(tour(_Job()))

    assert taken[Change.REPLACEMENT].seconds == 7.0
    assert taken[Change.JOIN].seconds == 0.5
